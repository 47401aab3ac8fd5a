-- Leaves the queue of a fingerprint's lock.  KEYS[1] queue  [2] leases of its members  ARGV[1] member
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return { 'done' }
