-- KEYS[6]  the part's mark  KEYS[7], KEYS[8]  queue of its twins, and who of them lives; only where its turn is wanted too
-- ARGV[2] fence  [3] fingerprint  [4] whether it may have been sent  [5] lock  [6] lifetime  [7] records at most
--      [8] how long ago records were last lost, or ''  [9] lease of the turn  [10] era in which that is known
--      [11] the upstream's key that its sends carry, or ''  [12] this host  [13] lease of its heartbeat
--      [14] lifetime once there is an answer, or '' for the same
-- Another server, or one that was emptied: what this host knows of losses may be too old to go by.
if redis.call('GET', KEYS[6]) ~= server(ARGV[10]) then return { 'strange' } end
local fence, fingerprint, lock, keep = ARGV[2], ARGV[3], tonumber(ARGV[5]), tonumber(ARGV[6])
local lost_ago, host_lease = tonumber(ARGV[8]), tonumber(ARGV[13])
-- Until when those may have been sending whose records the server has lost, as long as one of them may still be of use.
local lost_until = nil
if lost_ago and lost_ago < keep + lock then lost_until = math.min(now - lost_ago + lock, now) end
local r = read()
local there = r ~= nil
local ended = r and r.s == 'h' and ends(r, lost_ago, host_lease)
if ended and ended <= now and KEYS[8] then
  -- It ended, so it sends nothing more: its place among its twins is its successor's.
  redis.call('ZREM', KEYS[7], r.o)
  redis.call('ZREM', KEYS[8], r.o)
end
if r and expires(r) <= now then r = nil end
local prior, doubt = nil, false
local sends, first
if r then
  if r.f ~= fingerprint then return { 'mismatch' } end
  if r.s == 'd' then return { 'replay', redis.call('HGET', KEYS[1], 'a') } end
  -- A later state of it, or a mark, may have been lost where the server came back with older data.
  local outdated = lost_until and r.b <= now - lost_ago
  sends, first = r.w, r.x
  if r.s == 'u' then
    prior, doubt = r.t, r.y ~= nil
  elseif r.s == 'c' then
    prior = nil
  elseif now < ended and r.o == fence and not r.t then
    -- Asked again: the answer was lost on the way.
    prior, doubt, outdated = r.p, r.y ~= nil, nil
  elseif now < ended then
    if r.moved then write(r) end
    return { 'busy', whole(math.min(math.max(now - r.b, 1000000), ended - now)) }
  else
    prior, doubt = last_byte(r, ended), doubtful(r)
    if not prior and ARGV[4] == '1' then prior, doubt, sends, first = now, true, '-', nil end
  end
  if outdated then
    if not prior then doubt = true end
    prior, sends, first = later(prior, lost_until), '-', nil
  end
else
  prior = ARGV[4] == '1' and now or lost_until
  doubt = prior ~= nil
  if prior then sends = '-' end
  if not there and not has_room(tonumber(ARGV[7])) then return { 'full' } end
end
-- What an earlier holder asked stays known, as long as it may have been sent.
local asked = r and prior and r.l or nil
local own = {
  f = fingerprint, k = keep, s = 'h', o = fence, b = now, e = now + lock, p = prior, l = asked, h = ARGV[12],
  d = tonumber(ARGV[14]),
  q = ARGV[11] ~= '' and ARGV[11] or nil, w = sends, x = first, y = (prior and doubt) and '1' or nil,
  g = r and prior and r.g or nil
}
-- The first command that writes takes memory, so that a full server refuses the script as a whole: Redis lets everything
-- through that comes after a command which only frees.
write(own)
redis.call('HDEL', KEYS[1], 'a')
if not asked then redis.call('HDEL', KEYS[1], 'i') end
beat(KEYS[5], ARGV[12], host_lease)
schedule(own, math.min(own.e, now + host_lease))
local turn = '0'
if KEYS[8] and enter(KEYS[7], KEYS[8], fence, tonumber(ARGV[9]), true) then turn = '1' end
if prior then
  return { 'reconcile', whole(now - prior), turn, first and sends or '', first and whole(now - first) or '', own.y or '0' }
end
return { 'new', '', turn }
