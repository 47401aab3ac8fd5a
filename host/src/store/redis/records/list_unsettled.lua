-- KEYS[1] ids of records that may be unsettled, by expiry  ARGV[1] how many at most
return redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[1])
