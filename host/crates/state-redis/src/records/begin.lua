-- Begins a keyed write: new, busy, reconcile (the earlier effect is unknown), replay or mismatch.
-- KEYS[6]  the part's marker
-- KEYS[7], KEYS[8]  queue of the fingerprint's lock, and the leases of its members; only if the lock is wanted too
-- ARGV[2] fence  [3] fingerprint  [4] '1': it may have been sent before  [5] lock  [6] lifetime  [7] maximum of records
--      [8] how long ago records were last lost, or ''  [9] lease of the fingerprint's lock  [10] era in which [8] was read
--      [11] idempotency key that the sends carry to the upstream, or ''  [12] this host  [13] lease of its heartbeat
--      [14] lifetime once there is a response, or '' for the same
-- Another server, or one that was emptied: this host may not know of the loss yet.
if redis.call('GET', KEYS[6]) ~= server(ARGV[10]) then return { 'strange' } end
local fence, fingerprint, lock, keep = ARGV[2], ARGV[3], tonumber(ARGV[5]), tonumber(ARGV[6])
local lost_ago, host_lease = tonumber(ARGV[8]), tonumber(ARGV[13])
-- End of the locks of records that the server has lost, if such a record could still matter.
local lost_until = nil
if lost_ago and lost_ago < keep + lock then lost_until = math.min(now - lost_ago + lock, now) end
local r = read()
local there = r ~= nil
local ended = r and r.s == 'h' and ends(r, lost_ago, host_lease)
if ended and ended <= now and KEYS[8] then
  -- The old holder has ended and sends nothing more: remove it from the lock's queue.
  redis.call('ZREM', KEYS[7], r.o)
  redis.call('ZREM', KEYS[8], r.o)
end
if r and expires(r) <= now then r = nil end
local prior, doubt = nil, false
local sends, first
if r then
  if r.f ~= fingerprint then return { 'mismatch' } end
  if r.s == 'd' then return { 'replay', redis.call('HGET', KEYS[1], 'a') } end
  -- The server may have returned with older data: a later state of the record, or a later send, may be missing.
  local outdated = lost_until and r.b <= now - lost_ago
  sends, first = r.w, r.x
  if r.s == 'u' then
    prior, doubt = r.t, r.y ~= nil
  elseif r.s == 'c' then
    prior = nil
  elseif now < ended and r.o == fence and not r.t then
    -- The same owner repeats the call, because the reply was lost.
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
-- Keep the earlier holder's request, as long as it may have been sent.
local asked = r and prior and r.l or nil
local own = {
  f = fingerprint, k = keep, s = 'h', o = fence, b = now, e = now + lock, p = prior, l = asked, h = ARGV[12],
  d = tonumber(ARGV[14]),
  q = ARGV[11] ~= '' and ARGV[11] or nil, w = sends, x = first, y = (prior and doubt) and '1' or nil,
  g = r and prior and r.g or nil
}
-- `write` comes first, because it needs memory: a full server then refuses the script as a whole. After a command that only
-- frees memory, Redis would allow all others.
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
