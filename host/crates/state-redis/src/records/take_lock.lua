-- Joins the queue of a fingerprint's lock, or renews the membership. 'ours': the caller holds the lock.
-- KEYS[1] queue  [2] leases of its members  [3] the marker of a part; only if one script may touch all keys
-- ARGV[1] member  [2] lease  [3] era
if KEYS[3] and redis.call('GET', KEYS[3]) ~= server(ARGV[3]) then return { 'strange' } end
if enter(KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2]), false) then return { 'ours' } end
return { 'waits' }
