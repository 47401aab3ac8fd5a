-- The agreement of a fleet's hosts on one upstream's policy. The transitions are those of state/rollout/protocol.rs; a test plays
-- the same histories on both.
--
-- KEYS[1]  the agreement: a hash
-- KEYS[2]  the hosts, a hash: name -> 'time of the last message, generation, staged proposal'
-- ARGV     1 now (us; tests only, else '': the server's time)  2 channel  3 upstream  4 this host  5 the generation that it serves
--          6 the proposal that it has staged, or ''  7..13 its copy of the state: ln ge ch be wy by qu  14 message, then its arguments
-- Returns  outcome  '1' if a foreign value was found and discarded
--          ln ge ch be wy by qu  pi pd pb pp and time left for hosts to stage it (us)  ai ad ab as ar
--          then of each host its name, time since its last message (us), generation, staged proposal
--
-- The hash: ln line of generations (id of its first proposal); ge generation; ch digest chosen, '' as configured; be the choice before,
-- '-' for none; wy cause; by host; qu digests rolled back;
-- pi pd pb pp pf pu the proposal: id, digest, by, promoted, from, until; ai ad ab as ar the last one aborted: id, digest, by, step, reason
local LIVE_US, STAGING_US = 5000000, 30000000
local QUARANTINED, GENERATIONS, HOSTS = 32, 1000000000000, 10000
local OWN = {'ln', 'ge', 'ch', 'be', 'wy', 'by', 'qu', 'pi', 'pd', 'pb', 'pp', 'pf', 'pu', 'ai', 'ad', 'ab', 'as', 'ar'}

local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local host = ARGV[4]
local function text(number) return string.format('%.0f', number) end

-- Other programs may have written anything to these keys: invalid values are discarded, and the hosts' copies are written back.
local flawed, dirty, notify = '0', false, false
local function is_hex(word, digits) return #word == digits and not string.find(word, '[^0-9a-f]') end
local function is_count(word)
  return #word <= 13 and string.find(word, '^%d+$') and text(tonumber(word)) == word and tonumber(word) <= GENERATIONS
end
local function is_time(word) return #word <= 16 and string.find(word, '^%d+$') end
local function is_name(word) return #word >= 1 and #word <= 64 and not string.find(word, '[^%w%.%-_]') end
local function is_choice(word) return word == '' or is_hex(word, 64) end
local function list(words)
  local all = {}
  for one in string.gmatch(words, '[^ ]+') do all[#all + 1] = one end
  return all
end
local function is_list(words)
  local all = list(words)
  if #all > QUARANTINED or table.concat(all, ' ') ~= words then return false end
  for _, one in ipairs(all) do if not is_hex(one, 64) then return false end end
  return true
end
local function is_ours(s)
  return is_hex(s.ln, 16) and is_count(s.ge) and (s.ge ~= '0' or s.ch == '' and s.be == '-') and is_choice(s.ch) and (s.be == '-' or is_choice(s.be)) and string.find(s.wy, '^[apof]?$')
    and (s.by == '' or is_name(s.by)) and is_list(s.qu)
    and (s.pi == '' or is_hex(s.pi, 16) and is_hex(s.pd, 64) and is_name(s.pb) and string.find(s.pp, '^[01]$') and is_hex(s.pf, 64) and is_time(s.pu))
    and (s.ai == '' or is_hex(s.ai, 16) and is_hex(s.ad, 64) and is_name(s.ab) and #s.as <= 20 and string.find(s.as, '^[%l%-]+$') and #s.ar <= 2000)
end
local function holds(key)
  local kind = redis.call('TYPE', key).ok
  if kind == 'none' or kind == 'hash' then return kind == 'hash' end
  redis.call('DEL', key)
  flawed = '1'
  return false
end

local function nothing() return {ln = '0000000000000000', ge = '0', ch = '', be = '-', wy = '', by = '', qu = '', pi = '', ai = ''} end
local s = nothing()
if holds(KEYS[1]) then
  local short = true
  for _, field in ipairs(OWN) do short = short and redis.call('HSTRLEN', KEYS[1], field) <= 4096 end
  if short then
    local found = redis.call('HMGET', KEYS[1], unpack(OWN))
    for i, field in ipairs(OWN) do s[field] = found[i] or '' end
  end
  if not short or not is_ours(s) then
    s, flawed, dirty = nothing(), '1', true
  end
end
local known = {ln = ARGV[7], ge = ARGV[8], ch = ARGV[9], be = ARGV[10], wy = ARGV[11], by = ARGV[12], qu = ARGV[13]}
-- After a loss, a new line of generations may have begun: a host's copy of the old line must not overrule it.
if tonumber(known.ge) > tonumber(s.ge) and (s.ge == '0' or known.ln == s.ln) then
  for field, value in pairs(known) do s[field] = value end
  dirty, notify = true, true
end
if s.pi ~= '' and tonumber(s.pu) > now + STAGING_US then
  s.pu = text(now + STAGING_US)
  dirty = true
end

local hosts = {}
if holds(KEYS[2]) then
  if redis.call('HLEN', KEYS[2]) > HOSTS then
    redis.call('DEL', KEYS[2])
    flawed = '1'
  end
  for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
    local word = redis.call('HSTRLEN', KEYS[2], name) <= 64 and redis.call('HGET', KEYS[2], name) or ''
    local heard, generation, staged = string.match(word, '^(%d+) (%d+) (%x*)$')
    local fits = heard and is_name(name) and is_time(heard) and is_count(generation) and (staged == '' or is_hex(staged, 16))
    if not fits then flawed = '1' end
    if not fits or now - tonumber(heard) > LIVE_US then
      redis.call('HDEL', KEYS[2], name)
    else
      hosts[name] = {math.min(tonumber(heard), now), generation, staged}
      -- The clock was set back: a time in the future becomes now.
      if tonumber(heard) > now then redis.call('HSET', KEYS[2], name, text(now) .. ' ' .. generation .. ' ' .. staged) end
    end
  end
end
hosts[host] = {now, ARGV[5], ARGV[6]}

local function end_proposal()
  for _, field in ipairs({'pi', 'pd', 'pb', 'pp', 'pf', 'pu'}) do s[field] = '' end
  dirty, notify = true, true
end
local function abort(by, step, reason)
  s.ai, s.ad, s.ab, s.as, s.ar = s.pi, s.pd, by, step, reason
  end_proposal()
end
local function next_generation(why, by)
  s.ge = text(math.min(tonumber(s.ge) + 1, GENERATIONS))
  s.wy, s.by = why, by
  dirty, notify = true, true
end
local function without(bad)
  local all = {}
  for _, one in ipairs(list(s.qu)) do if one ~= bad then all[#all + 1] = one end end
  return all
end

local outcome = 'done'
local word = ARGV[14]
if word == 'announce' then
  local id, digest, promoted, from = ARGV[15], ARGV[16], ARGV[17], ARGV[18]
  local lost = false
  for _, other in ipairs(list(ARGV[19])) do lost = lost or not hosts[other] end
  if s.ch == digest then outcome = 'serving'
  elseif promoted == '0' and string.find(s.qu, digest, 1, true) then outcome = 'quarantined'
  elseif s.pi ~= '' then outcome = 'busy'
  elseif lost then outcome = 'gathering'
  else
    s.pi, s.pd, s.pb, s.pp, s.pf, s.pu = id, digest, host, promoted, from, text(now + STAGING_US)
    hosts[host][3] = id
    dirty, notify = true, true
  end
elseif word == 'refuse' then
  if s.pi == ARGV[15] then abort(host, ARGV[16], ARGV[17]) else outcome = 'stale' end
elseif word == 'back' then
  if s.ge ~= ARGV[15] or s.ch ~= ARGV[16] then outcome = 'stale'
  elseif ARGV[17] == 'o' and s.pi ~= '' then
    abort(host, 'operator', 'an operator withdrew it before it served')
    outcome = 'aborted'
  elseif s.be == '-' then outcome = 'no-other'
  else
    if s.ch ~= '' then
      local all = without(s.ch)
      all[#all + 1] = s.ch
      if #all > QUARANTINED then table.remove(all, 1) end
      s.qu = table.concat(all, ' ')
    end
    s.ch, s.be = s.be, '-'
    next_generation(ARGV[17], host)
  end
end

if s.pi ~= '' then
  local some, all = false, true
  for _, one in pairs(hosts) do
    if one[3] == s.pi then some = true else all = false end
  end
  local over = now >= tonumber(s.pu)
  if all or over then
    if some then
      local before = s.ch == '' and s.pf or s.ch
      s.be, s.ch = before == s.pd and '-' or before, s.pd
      if s.ge == '0' then s.ln = s.pi end
      s.qu = table.concat(without(s.pd), ' ')
      next_generation(s.pp == '1' and 'p' or 'a', s.pb)
      end_proposal()
    else
      abort(s.pb, 'staging', 'no live host has staged it')
    end
  end
end

if dirty then
  local fields = {}
  for _, field in ipairs(OWN) do
    fields[#fields + 1] = field
    fields[#fields + 1] = s[field] or ''
  end
  redis.call('HSET', KEYS[1], unpack(fields))
end
redis.call('HSET', KEYS[2], host, text(now) .. ' ' .. hosts[host][2] .. ' ' .. hosts[host][3])
redis.call('PEXPIRE', KEYS[2], 86400000)
if notify then redis.call('PUBLISH', ARGV[2], 'policy ' .. ARGV[3]) end

local answer = {outcome, flawed, s.ln, s.ge, s.ch, s.be, s.wy, s.by, s.qu, s.pi, s.pd or '', s.pb or '', s.pp or ''}
answer[14] = s.pi ~= '' and text(math.max(0, tonumber(s.pu) - now)) or ''
for _, field in ipairs({'ai', 'ad', 'ab', 'as', 'ar'}) do answer[#answer + 1] = s[field] or '' end
local names = {}
for name in pairs(hosts) do names[#names + 1] = name end
table.sort(names)
for _, name in ipairs(names) do
  local one = hosts[name]
  for _, value in ipairs({name, text(now - one[1]), one[2], one[3]}) do answer[#answer + 1] = value end
end
return answer
