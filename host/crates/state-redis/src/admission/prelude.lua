-- The beginning of every script of a group. The transitions are those of breaker/state.rs, rate_limit.rs and retry/budget.rs, in
-- whole microseconds and thousandths, so that no digit is lost; a test plays the same histories on both.
--
-- KEYS[1]  the group's state: a hash
-- KEYS[2]  hosts that saw failures since the breaker closed, by time
-- KEYS[3]  hosts, by their last heartbeat
-- KEYS[4..7] if Python workers share the breaker: see pybreaker.lua
-- ARGV     1 now (us; tests only, else '': the server's time)  2 channel  3 group  4 this host  5 random number (53 bits)
--          6 time (us) that this host knows the breaker to stay open, 7 its cause and epoch; both for a server that has lost it
--          8 quorum  9 1: there is a breaker  10 failures in a row  11 failure rate  12 slow rate (each -1: none)
--          13 window  14 minimum calls  15 open for  16 open for at most  17 jitter  18 probes  19 probe lease
--          20 budget's percent  21 floor  22 capacity  23 number of limits, then interval and tolerance of each; then the script's own
--          arguments; the last two: the epoch that this host knows, or ''
--
-- The hash: er ec epoch (random number, counter); st state; un open or held until; si open since; tr failed probes in a row; wy cause;
-- fr failures in a row; wb nc nf ns bc bf bs window; at time of the last change; ls leases of probes; su successes of probes;
-- nl next lease; tk ta retry budget; pu paused until; mv total time that pauses moved reservations; lf mv at the last lift;
-- t.. arrival time of a limit, named by interval and tolerance, so that after a reload, or with hosts of different settings, no two
-- limits are mixed up; py state last shown to Python workers
local CLOSED, OPEN, HALF_OPEN, HELD = 0, 1, 2, 3
-- A host without a heartbeat for this long is not counted as live.
local LIVE_US = 5000000
-- Smaller steps back of the clock are ignored.
local BACK_US = 1000000

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local limits = tonumber(ARGV[23])
local own = 24 + 2 * limits
local chance = tonumber(ARGV[5])

local gate, changed = {}, {}
local flat = redis.call('HGETALL', KEYS[1])
for i = 1, #flat, 2 do gate[flat[i]] = flat[i + 1] end

local function text(number) return string.format('%.0f', number) end
local function number(field) return tonumber(gate[field]) or 0 end
local function put(field, value)
  if type(value) == 'number' then value = text(value) end
  gate[field] = value
  changed[#changed + 1] = field
  changed[#changed + 1] = value
end
-- Exact integer division.
local function div(a, b) return (a - math.fmod(a, b)) / b end
local function setting(index) return tonumber(ARGV[index]) end
local arrival, alike = {}, {}
for i = 1, limits do
  local name = 't' .. ARGV[22 + 2 * i] .. '/' .. ARGV[23 + 2 * i]
  alike[name] = (alike[name] or 0) + 1
  arrival[i] = alike[name] == 1 and name or name .. '#' .. alike[name]
end
-- The fields of all limits, including those that only other hosts have.
local function arrivals()
  local all = {}
  for field in pairs(gate) do
    if string.match(field, '^t%d') then all[#all + 1] = field end
  end
  return all
end
local function limit(index) return tonumber(ARGV[22 + 2 * index]), tonumber(ARGV[23 + 2 * index]) end

local function breaker_state()
  local left = '0'
  if gate.st == '1' or gate.st == '3' then left = text(math.max(0, number('un') - now)) end
  return gate.er, gate.ec, gate.st, left, gate.wy or ''
end

-- Set by pybreaker.lua: `mirror` shows the breaker to Python workers; `theirs` is their failures in a row since the last script.
local mirror
local theirs = 0

local function done(...)
  if mirror then mirror() end
  if #changed > 0 then
    put('at', now)
    redis.call('HSET', KEYS[1], unpack(changed))
  end
  local random, counter, state, left, why = breaker_state()
  return {random, counter, state, left, why, ...}
end

local function publish()
  local random, counter, state, left, why = breaker_state()
  local words = {'breaker', random, counter, state, left, why ~= '' and why or '-', ARGV[3]}
  redis.call('PUBLISH', ARGV[2], table.concat(words, ' '))
end

local function enter(state)
  put('ec', number('ec') + 1)
  put('st', state)
end

local function afresh()
  for _, field in ipairs({'fr', 'wb', 'nc', 'nf', 'ns', 'bc', 'bf', 'bs'}) do put(field, 0) end
  put('wy', '')
  redis.call('DEL', KEYS[2])
end

local function open(why, trips, open_for)
  enter(OPEN)
  put('un', now + open_for)
  put('si', now)
  put('tr', trips)
  put('wy', why)
  redis.call('DEL', KEYS[2])
  publish()
end

if not gate.er then
  put('er', chance)
  put('ec', 0)
  put('st', CLOSED)
  put('nl', 0)
  put('tk', math.min(math.max(setting(21), 1), math.max(setting(22), 1)) * 1000)
  put('ta', now)
  afresh()
end
-- The server returned with older data: begin a new random epoch, so that nothing from a lost epoch counts.
local known_counter = tonumber(ARGV[#ARGV])
if known_counter and ARGV[#ARGV - 1] == gate.er and known_counter > number('ec') then
  put('er', chance)
  put('ec', 0)
  put('ls', '')
end
-- A breaker that the server has lost stays open as long as a host knows of it.
if setting(6) > 0 and gate.st == '0' then
  local why, random = string.match(ARGV[7], '^(%S+) (%S+)$')
  if random ~= gate.er then open(why, 0, setting(6)) end
end

-- The clock was set back, or is another server's: shift all times too.
local back = (tonumber(gate.at) or now) - now
if back > BACK_US then
  local moved = arrivals()
  for _, field in ipairs({'un', 'si', 'wb', 'ta', 'pu'}) do moved[#moved + 1] = field end
  for _, field in ipairs(moved) do put(field, math.max(0, number(field) - back)) end
  put('ls', (string.gsub(gate.ls or '', ':(%d+)', function(ends) return ':' .. text(math.max(0, ends - back)) end)))
  redis.call('DEL', KEYS[2], KEYS[3])
end

-- The open time: doubled with each failed probe up to the cap, then jittered.
local function open_time(trips)
  local doubled = math.min(setting(15) * 2 ^ math.min(trips, 20), math.max(setting(16), setting(15)))
  local spread = div(doubled, 100) * math.min(setting(17), 100)
  if spread == 0 then return doubled end
  return math.max(0, doubled - div(spread, 2)) + math.fmod(chance, spread)
end

local function turn(length)
  local passed = div(now - number('wb'), length)
  if passed <= 0 then return end
  for _, kind in ipairs({'c', 'f', 's'}) do
    put('b' .. kind, passed == 1 and number('n' .. kind) or 0)
    put('n' .. kind, 0)
  end
  put('wb', number('wb') + passed * length)
end

-- Calls, failures and slow calls in the window, in thousandths.
local function counts()
  local length = math.max(setting(13), 1)
  local share = div((length - math.min(math.max(now - number('wb'), 0), length)) * 1000, length)
  local function sum(kind) return number('n' .. kind) * 1000 + number('b' .. kind) * share end
  return sum('c'), sum('f'), sum('s')
end

local function count(calls, failures, slow)
  turn(math.max(setting(13), 1))
  put('nc', number('nc') + calls)
  if failures > 0 then put('nf', number('nf') + failures) end
  if slow > 0 then put('ns', number('ns') + slow) end
end

-- Counts successes that a host has saved up under an epoch, before the rest of its report.
local function saved_up(random, counter, calls)
  if calls > 0 and gate.er == random and gate.ec == counter and gate.st == '0' then
    put('fr', theirs)
    count(calls, 0, 0)
  end
end

-- The cause of a trip, or nil. Its first letter is the kind: c failures in a row, f failure rate, s slow rate.
local function tripped()
  local row = number('fr')
  if setting(10) >= 0 and row >= setting(10) then return 'c' .. text(row) end
  turn(math.max(setting(13), 1))
  local calls, failures, slow = counts()
  if calls < math.max(setting(14), 1) * 1000 then return end
  local function percent(part) return div(part * 200 + calls, calls * 2) end
  if setting(11) >= 0 and percent(failures) >= setting(11) then return 'f' .. text(percent(failures)) end
  if setting(12) >= 0 and percent(slow) >= setting(12) then return 's' .. text(percent(slow)) end
end

local function agreed()
  local live = redis.call('ZCOUNT', KEYS[3], text(now - LIVE_US), '+inf')
  local seen = redis.call('ZCOUNT', KEYS[2], text(now - math.max(setting(13), 1)), '+inf')
  return seen >= math.max(1, math.min(setting(8), live))
end

-- The leases of probes under way: number and end of each.
local function leases()
  local all = {}
  for lease, ends in string.gmatch(gate.ls or '', '(%d+):(%d+)') do
    if tonumber(ends) > now then all[#all + 1] = {tonumber(lease), tonumber(ends)} end
  end
  return all
end

local function put_leases(all)
  local words = {}
  for i, lease in ipairs(all) do words[i] = text(lease[1]) .. ':' .. text(lease[2]) end
  put('ls', table.concat(words, ' '))
end

local function without(all, lease)
  local rest = {}
  for _, one in ipairs(all) do
    if one[1] ~= lease then rest[#rest + 1] = one end
  end
  return rest
end

-- Admits one attempt: its lease ('-1': none is needed), or nil and when to retry.
local function admit()
  if gate.st == '1' then
    if now < number('un') then return nil, number('un') - now end
    enter(HALF_OPEN)
    put('ls', '')
    put('su', 0)
    publish()
  elseif gate.st == '3' and number('un') <= now then
    enter(CLOSED)
    afresh()
    publish()
  end
  if gate.st ~= '2' then return '-1' end
  local all = leases()
  if #all >= math.max(setting(18), 1) then
    local first = all[1][2]
    for _, lease in ipairs(all) do first = math.min(first, lease[2]) end
    put_leases(all)
    return nil, first - now
  end
  local lease = number('nl')
  put('nl', lease + 1)
  all[#all + 1] = {lease, now + setting(19)}
  put_leases(all)
  return text(lease)
end

-- Thousandths of a retry that the budget's floor has earned since `ta`.
local function earned() return div(math.max(0, now - number('ta')) * setting(21), 1000) end
local function saved(milli) return math.min(number('tk') + milli, math.max(setting(22), 1) * 1000) end
local function earn(milli) put('tk', saved(milli)) end

local function refill()
  local milli = earned()
  if milli > 0 then
    put('ta', now)
    earn(milli)
  end
end

local function release(random, counter, lease)
  if lease ~= '-1' and gate.er == random and gate.ec == counter and gate.st == '2' then
    put_leases(without(leases(), tonumber(lease)))
  end
end
