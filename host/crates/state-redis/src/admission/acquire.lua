-- Asks breaker, retry budget and every limit at once: takes from all of them, or from none.
-- ARGV     attempt kind (first, retry, probe: a verification)  maximal wait (us)  epoch (two) and number of successes saved up
--          first attempts made with prefetched permits  permits to prefetch  minimal wait (us)
-- Returns  the breaker, then one of
--          go  wait  due  moved  lease  prefetched permits, then of each limit its arrival time before and after
--          limited  index of the limit (-1: a pause)  wait     open  wait     budget  wait
local ask, max_wait = ARGV[own], tonumber(ARGV[own + 1])
saved_up(ARGV[own + 2], ARGV[own + 3], tonumber(ARGV[own + 4]))
local firsts, permits = tonumber(ARGV[own + 5]), tonumber(ARGV[own + 6])
if firsts > 0 then earn(firsts * setting(20) * 10) end
local pause = number('pu') - now
if pause > max_wait then return done('limited', -1, text(pause)) end
local due, last = math.max(now + tonumber(ARGV[own + 7]), number('pu')), -1
for i = 1, limits do
  local _, tolerance = limit(i)
  local earliest = number(arrival[i]) - tolerance
  if earliest >= due then due, last = earliest, i - 1 end
end
if due - now > max_wait then return done('limited', last, text(due - now)) end
local lease = '-1'
if setting(9) == 1 and ask ~= 'probe' then
  local wait
  lease, wait = admit()
  if not lease then return done('open', text(wait)) end
end
if ask == 'retry' then
  refill()
  local missing = 1000 - number('tk')
  if missing > 0 then
    release(gate.er, gate.ec, lease)
    local floor = setting(21)
    return done('budget', text(floor > 0 and div(missing * 1000, floor) + 1 or 1000000))
  end
  put('tk', number('tk') - 1000)
elseif ask == 'first' then
  earn(setting(20) * 10)
end
local made = {}
for i = 1, limits do
  local interval = limit(i)
  local before = number(arrival[i])
  put(arrival[i], math.max(before, due) + interval)
  made[2 * i - 1] = text(before)
  made[2 * i] = gate[arrival[i]]
end
-- Prefetch only permits that could be used at once.
local leased = 0
if due == now and gate.st == '0' then
  leased = permits
  for i = 1, limits do
    local interval, tolerance = limit(i)
    leased = math.max(0, math.min(leased, div(math.max(0, now + tolerance - number(arrival[i]) + interval), interval)))
  end
  for i = 1, limits do
    if leased > 0 then put(arrival[i], number(arrival[i]) + leased * (limit(i))) end
  end
end
return done('go', text(due - now), text(due), text(number('mv')), lease, leased, unpack(made))
