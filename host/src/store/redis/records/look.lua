-- How long ago a byte was last sent, if the record is unsettled; its name, and the time until its next verification, or ''.
-- ARGV[2] how long ago records were last lost, or ''  [3] lease of a heartbeat
local r = read()
local sent = unsettled(r, tonumber(ARGV[2]), tonumber(ARGV[3]))
if not sent then return { 'settled' } end
local due = tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1]))
return { 'unsettled', whole(now - sent), r.l and string.sub(r.l, 2) or '', due and whole(math.max(due - now, 0)) or '' }
