-- Refunds what was taken for an attempt that was not made.
-- ARGV     epoch (two) and lease of the ticket  1: it was sent  attempt kind  moved  of each limit its arrival time before and after
-- Returns  the breaker
release(ARGV[own], ARGV[own + 1], ARGV[own + 2])
if ARGV[own + 3] == '1' then return done() end
-- A reservation that a lifted pause made void is not refunded.
local first = tonumber(ARGV[own + 5]) < number('lf') and limits + 1 or 1
local moved = math.max(0, number('mv') - tonumber(ARGV[own + 5]))
for i = first, limits do
  local before, made = tonumber(ARGV[own + 4 + 2 * i]), tonumber(ARGV[own + 5 + 2 * i])
  -- A reservation is refunded only if it is the last one: later ones depend on it.
  if made and number(arrival[i]) == made + moved then put(arrival[i], before + moved) end
end
if ARGV[own + 4] == 'retry' then earn(1000) end
return done()
