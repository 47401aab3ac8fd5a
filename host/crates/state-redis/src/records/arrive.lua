-- A request without a key arrives: it adopts the oldest orphan, or is listed, and its record is marked as sent.
-- KEYS[6] the part's marker  [7] list of equal requests  [8] index of all entries of the part
-- KEYS[9], KEYS[10]  queue of the fingerprint's lock, and the leases of its members; only if the lock is wanted too
-- ARGV[2] fence  [3] fingerprint of the record  [4] lease  [5] how long orphans are kept  [6] lock  [7] lifetime of the record
--      [8] lifetime of a response  [9] maximum of records  [10] maximum of unanswered requests  [11] maximum of equal ones
--      [12] how long ago records were last lost, or ''  [13] lease of the lock  [14] era in which [12] was read
--      [15], [16] name and sealed request, as in sent.lua
--      [17] idempotency key that the sends carry to the upstream, or ''
local mark = redis.call('GET', KEYS[6])
if mark ~= server(ARGV[14]) then return { 'strange' } end
-- The first write fails if memory is full, and so fails the script. Without this SET the first write could be one that frees
-- memory, after which Redis allows all others.
redis.call('SET', KEYS[6], mark)
local fence, lease, kept, lock, keep = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local entries = listed(KEYS[7], KEYS[8], kept)
local adopted = adopt(KEYS[7], KEYS[8], entries, fence, lease, kept, nil)
if adopted then return { 'adopted', adopted } end
redis.call('ZREMRANGEBYSCORE', KEYS[8], '-inf', whole(now))
if #entries >= tonumber(ARGV[11]) or redis.call('ZCARD', KEYS[8]) >= tonumber(ARGV[10]) or not has_room_without_key(tonumber(ARGV[9])) then
  return { 'full' }
end
tell(KEYS[7], KEYS[8], { id = ARGV[1], since = arrival(entries), alive = now + lease, owner = fence }, kept)
local prior, lost_ago = nil, tonumber(ARGV[12])
if lost_ago and lost_ago < kept + lock then prior = math.min(now - lost_ago + lock, now) end
local r = { f = ARGV[3], k = keep, d = tonumber(ARGV[8]), s = 'h', o = fence, b = now, e = now + lock, t = now, p = prior }
if ARGV[17] ~= '' then r.q = ARGV[17] end
if r.q and not prior then
  r.w, r.x = r.q, now
else
  r.w = '-'
end
if prior then r.y = '1' end
intend(r, ARGV[15], ARGV[16])
write(r)
schedule(r, r.e)
local turn = '0'
if KEYS[10] and enter(KEYS[9], KEYS[10], fence, tonumber(ARGV[13]), true) then turn = '1' end
local others = #entries > 0 and '1' or '0'
if prior then return { 'reconcile', whole(now - prior), turn, others } end
return { 'new', '', turn, others }
