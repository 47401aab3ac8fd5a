-- KEYS[5]  the part's mark  KEYS[6], KEYS[7]  queue of its twins, and who of them lives; only where its turn is wanted too
-- ARGV[2] fence  [3] fingerprint  [4] whether it may have been sent  [5] lock  [6] lifetime  [7] records at most
--      [8] how long ago records were last lost, or ''  [9] lease of the turn  [10] era in which that is known
--      [11] the upstream's key that its sends carry, or ''
-- Another server, or one that was emptied: what this host knows of losses may be too old to go by.
if redis.call('GET', KEYS[5]) ~= server(ARGV[10]) then return { 'strange' } end
local fence, fingerprint, lock, keep = ARGV[2], ARGV[3], tonumber(ARGV[5]), tonumber(ARGV[6])
local r = read()
local there = r ~= nil
local sends, first
if r and r.s == 'h' and r.e <= now and KEYS[7] then
  -- Its lock ran out, so it sends nothing more: its place among its twins is its successor's.
  redis.call('ZREM', KEYS[6], r.o)
  redis.call('ZREM', KEYS[7], r.o)
end
if r and expires(r) <= now then r = nil end
local prior = nil
if r then
  if r.f ~= fingerprint then return { 'mismatch' } end
  if r.s == 'd' then return { 'replay', redis.call('HGET', KEYS[1], 'a') } end
  if r.s == 'u' then
    prior = r.t
  elseif now < r.e and r.o == fence and not r.t then
    -- Asked again: the answer was lost on the way.
    prior = r.p
  elseif now < r.e then
    if r.moved then write(r) end
    return { 'busy', whole(math.min(math.max(now - r.b, 1000000), r.e - now)) }
  else
    prior = last_byte(r)
  end
  sends, first = r.w, r.x
else
  local lost_ago = tonumber(ARGV[8])
  if ARGV[4] == '1' then
    prior = now
  elseif lost_ago and lost_ago < keep + lock then
    -- Nobody else's record of that time can still be sending.
    prior = math.min(now - lost_ago + lock, now)
  end
  if prior then sends = '-' end
  if not there and not has_room(tonumber(ARGV[7])) then return { 'full' } end
end
redis.call('HDEL', KEYS[1], 'a')
-- What an earlier holder asked stays known, as long as it may have been sent.
local asked = r and prior and r.l or nil
if not asked then redis.call('HDEL', KEYS[1], 'i') end
local own = {
  f = fingerprint, k = keep, s = 'h', o = fence, b = now, e = now + lock, p = prior, l = asked,
  q = ARGV[11] ~= '' and ARGV[11] or nil, w = sends, x = first
}
write(own)
schedule(own, own.e)
local turn = '0'
if KEYS[7] and enter(KEYS[6], KEYS[7], fence, tonumber(ARGV[9]), true) then turn = '1' end
if prior then
  return { 'reconcile', whole(now - prior), turn, first and sends or '', first and whole(now - first) or '' }
end
return { 'new', '', turn }
