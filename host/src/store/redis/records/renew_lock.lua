-- KEYS[1] queue  [2] who of it lives  ARGV[1] who has the turn  [2] for how long it then counts as alive
local until_now = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not until_now or tonumber(until_now) <= now then return { 'lost' } end
if enter(KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2]), false) then return { 'ours' } end
return { 'lost' }
