-- Writes a part's marker for this server and era.
-- KEYS[1] the marker  ARGV[1] era  [2] '1': the part had its marker in this era before
local own, held = server(ARGV[1]), redis.call('GET', KEYS[1])
if own == held then return { 'same' } end
-- The marker is gone, so the records may be gone too, and no host has noticed yet.
if not held and ARGV[2] == '1' then return { 'lost' } end
redis.call('SET', KEYS[1], own)
return { 'marked' }
