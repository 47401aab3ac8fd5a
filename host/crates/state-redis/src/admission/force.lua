-- Applies an operator's command to the breaker.
-- ARGV     open, close, reset or undo  how long (us)
-- Returns  the breaker
local what, time = ARGV[own], tonumber(ARGV[own + 1])
if what == 'open' then
  open('o', 0, time)
elseif what == 'close' then
  enter(HELD)
  put('un', now + time)
  put('wy', '')
  publish()
elseif what == 'undo' and gate.st == '1' and gate.wy == 'o' then
  enter(OPEN)
  put('un', now)
  put('tr', 0)
  publish()
elseif what == 'reset' or (what == 'undo' and gate.st == '3') then
  enter(CLOSED)
  afresh()
  publish()
end
return done()
