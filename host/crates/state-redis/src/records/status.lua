-- The status of a record for the caller of its request.
-- ARGV[2] how long ago records were last lost, or ''  [3] lease of a heartbeat
local lost_ago, lease = tonumber(ARGV[2]), tonumber(ARGV[3])
local r = read()
if not r or expires(r) <= now then return { 'none' } end
if r.s == 'd' then return { 'done', redis.call('HGET', KEYS[1], 'a') or '' } end
if r.s == 'h' and now < ends(r, lost_ago, lease) then return { 'under-way', whole(now - r.b), (r.t or r.p) and '1' or '0' } end
local sent = unsettled(r, lost_ago, lease)
if sent then return { 'unknown', whole(now - sent) } end
return { 'none' }
