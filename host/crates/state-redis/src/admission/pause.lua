-- Delays every attempt, as the upstream asked. A shorter pause never cuts a longer one.
-- ARGV     how long (us)
-- Returns  the breaker
local until_then = now + tonumber(ARGV[own])
local by = until_then - math.max(number('pu'), now)
if by <= 0 then return done() end
put('pu', until_then)
put('mv', number('mv') + by)
for _, field in ipairs(arrivals()) do put(field, number(field) + by) end
redis.call('PUBLISH', ARGV[2], table.concat({'pause', text(until_then - now), ARGV[3]}, ' '))
return done()
