-- Marks a part as this server's in this era.
-- KEYS[1] the mark  ARGV[1] era  [2] whether the part was marked in this era before
local own, held = server(ARGV[1]), redis.call('GET', KEYS[1])
if own == held then return { 'same' } end
-- Its mark is gone, and so may be its records: nobody knows yet.
if not held and ARGV[2] == '1' then return { 'lost' } end
redis.call('SET', KEYS[1], own)
return { 'marked' }
