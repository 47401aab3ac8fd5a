-- Ends a pause early. Every earlier reservation becomes void: its request reserves again at the recheck. Attempts sent so far fill
-- at most the burst, so that each limit holds.
-- Returns  the breaker, then whether there was a pause  moved time at the last lift (us)
if number('pu') <= now then return done(0, text(number('lf'))) end
put('pu', now)
put('mv', number('mv') + 1)
put('lf', number('mv'))
for _, field in ipairs(arrivals()) do
  local interval, tolerance = string.match(field, '^t(%d+)/(%d+)')
  put(field, math.min(number(field), now + tonumber(interval) + tonumber(tolerance)))
end
redis.call('PUBLISH', ARGV[2], table.concat({'lift', text(number('lf')), ARGV[3]}, ' '))
return done(1, text(number('lf')))
