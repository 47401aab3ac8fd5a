-- Records the result of an attempt.
-- ARGV     epoch (two) and number of successes saved up  first attempts made with prefetched permits
--          epoch (two) and lease of the ticket  signal (success, failure, ignore, none)  1: it was slow
--          open time that the upstream asks for (us; 0: none)
-- Returns  the breaker
saved_up(ARGV[own], ARGV[own + 1], tonumber(ARGV[own + 2]))
local firsts = tonumber(ARGV[own + 3])
if firsts > 0 then earn(firsts * setting(20) * 10) end
local lease, signal, slow = ARGV[own + 6], ARGV[own + 7], tonumber(ARGV[own + 8])
-- Extends the open time to what the upstream asks, if the breaker opened in the attempt's epoch, by this result or just before it.
local function lengthen()
  local asked = tonumber(ARGV[own + 9])
  if asked == 0 then return end
  local open_for = math.min(asked, math.max(setting(16), setting(15)))
  local opened_in = gate.er == ARGV[own + 4] and number('ec') == (tonumber(ARGV[own + 5]) or -2) + 1
  if setting(9) == 1 and gate.st == '1' and gate.wy ~= 'o' and opened_in and now + open_for > number('un') then
    put('un', now + open_for)
    publish()
  end
end
if setting(9) ~= 1 or gate.er ~= ARGV[own + 4] or gate.ec ~= ARGV[own + 5] then lengthen() end
if setting(9) ~= 1 or gate.er ~= ARGV[own + 4] or gate.ec ~= ARGV[own + 5] or signal == 'none' then return done() end
if gate.st == '2' and lease ~= '-1' then
  local all = leases()
  local rest = without(all, tonumber(lease))
  put_leases(rest)
  -- The lease has ended, and another probe may have taken it over: ignore the result.
  if #rest == #all or signal == 'ignore' then return done() end
  if signal == 'failure' then
    open('p', number('tr') + 1, open_time(number('tr') + 1))
    lengthen()
    return done()
  end
  put('su', number('su') + 1)
  if number('su') < math.max(setting(18), 1) then return done() end
  enter(CLOSED)
  afresh()
  publish()
elseif gate.st == '0' and lease == '-1' and signal ~= 'ignore' then
  local failed = signal == 'failure' and 1 or 0
  put('fr', failed == 1 and number('fr') + 1 or 0)
  count(1, failed, slow)
  -- A fast success never opens the breaker.
  if failed == 0 and slow == 0 then return done() end
  redis.call('ZADD', KEYS[2], text(now), ARGV[4])
  local why = tripped()
  if why and agreed() then
    open(why, 0, open_time(0))
    lengthen()
  end
end
return done()
