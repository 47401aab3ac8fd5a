-- KEYS[1] queue  [2] who of it lives  ARGV[1] who leaves
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return { 'done' }
