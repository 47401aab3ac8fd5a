-- A host's heartbeat: it reports successes saved up, and reads the state of the group.
-- ARGV     epoch (two) and number of successes saved up  first attempts made with prefetched permits  lifetime of an unused group (ms)
-- Returns  the breaker, then live hosts  failures in a row  calls, failures and slow calls in the window (thousandths)
--          probes under way  time since it opened (us)  retry budget (thousandths)  pause (us)  moved time at the last lift (us)
--          then of each limit how far its arrival time is ahead (us)
saved_up(ARGV[own], ARGV[own + 1], tonumber(ARGV[own + 2]))
local firsts = tonumber(ARGV[own + 3])
if firsts > 0 then earn(firsts * setting(20) * 10) end
redis.call('ZADD', KEYS[3], text(now), ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', '(' .. text(now - LIVE_US))
local calls, failures, slow = 0, 0, 0
if gate.st == '0' then
  turn(math.max(setting(13), 1))
  calls, failures, slow = counts()
end
local ahead = {}
for i = 1, limits do ahead[i] = text(math.max(0, number(arrival[i]) - now)) end
local since = (gate.st == '1') and math.max(0, now - number('si')) or 0
local answer = done(redis.call('ZCARD', KEYS[3]), gate.st == '0' and text(number('fr')) or '0', text(calls), text(failures), text(slow),
  gate.st == '2' and #leases() or 0, text(since), text(saved(earned())), text(math.max(0, number('pu') - now)), text(number('lf')), unpack(ahead))
-- Remove limits that this host does not have and whose arrival time has passed: such a limit counts nothing any more.
local over, known = {}, {}
for i = 1, limits do known[arrival[i]] = true end
for _, field in ipairs(arrivals()) do
  if not known[field] and number(field) < now and #over < 100 then over[#over + 1] = field end
end
if #over > 0 then redis.call('HDEL', KEYS[1], unpack(over)) end
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[own + 4]) end
return answer
