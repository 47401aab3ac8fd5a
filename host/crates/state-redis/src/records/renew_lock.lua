-- Renews a fingerprint's lock. A lease that has ended is not revived.
-- KEYS[1] queue  [2] leases of its members  ARGV[1] holder  [2] lease
local until_now = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not until_now or tonumber(until_now) <= now then return { 'lost' } end
if enter(KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2]), false) then return { 'ours' } end
return { 'lost' }
