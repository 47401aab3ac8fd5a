-- Reads an unsettled record: how long ago a byte was last sent, its name, and the time until its next verification, or ''.
-- A record counts as unsettled, with time 0, also while a holder that has sent nothing itself verifies it.
-- ARGV[2] how long ago records were last lost, or ''  [3] lease of a heartbeat
local r = read()
local lost_ago, lease = tonumber(ARGV[2]), tonumber(ARGV[3])
if r and r.s == 'h' and r.p and not r.t and not r.y and now < ends(r, lost_ago, lease) and now < expires(r) then
  return { 'unsettled', whole(now - r.p), r.l and string.sub(r.l, 2) or '', '0' }
end
local sent = unsettled(r, lost_ago, lease)
if not sent then return { 'settled' } end
local due = tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1]))
return { 'unsettled', whole(now - sent), r.l and string.sub(r.l, 2) or '', due and whole(math.max(due - now, 0)) or '' }
