-- Gives back what was taken for an attempt that was not made.
-- ARGV     the ticket: epoch (two) and lease  whether it was sent  what for  moved  of each limit its time before and as made
-- Answers  the breaker
release(ARGV[own], ARGV[own + 1], ARGV[own + 2])
if ARGV[own + 3] == '1' then return done() end
-- Nor is one given back that a lifted pause has made void.
local first = tonumber(ARGV[own + 5]) < number('lf') and limits + 1 or 1
local moved = math.max(0, number('mv') - tonumber(ARGV[own + 5]))
for i = first, limits do
  local before, made = tonumber(ARGV[own + 4 + 2 * i]), tonumber(ARGV[own + 5 + 2 * i])
  -- A place that others stand behind is forfeited.
  if made and number(arrival[i]) == made + moved then put(arrival[i], before + moved) end
end
if ARGV[own + 4] == 'retry' then earn(1000) end
return done()
