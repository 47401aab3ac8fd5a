-- Takes a result.
-- ARGV     the epoch (two) and number of successes saved up  first attempts made under leased places
--          the ticket: epoch (two) and lease  signal (success, failure, ignore, none)  whether it was slow
-- Answers  the breaker
saved_up(ARGV[own], ARGV[own + 1], tonumber(ARGV[own + 2]))
local firsts = tonumber(ARGV[own + 3])
if firsts > 0 then earn(firsts * setting(20) * 10) end
local lease, signal, slow = ARGV[own + 6], ARGV[own + 7], tonumber(ARGV[own + 8])
if setting(9) ~= 1 or gate.er ~= ARGV[own + 4] or gate.ec ~= ARGV[own + 5] or signal == 'none' then return done() end
if gate.st == '2' and lease ~= '-1' then
  local all = leases()
  local rest = without(all, tonumber(lease))
  put_leases(rest)
  -- A result after its lease is another prober's business.
  if #rest == #all or signal == 'ignore' then return done() end
  if signal == 'failure' then
    open('p', number('tr') + 1, open_time(number('tr') + 1))
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
  -- A good call never opens a breaker.
  if failed == 0 and slow == 0 then return done() end
  redis.call('ZADD', KEYS[2], text(now), ARGV[4])
  local why = tripped()
  if why and agreed() then open(why, 0, open_time(0)) end
end
return done()
