-- Ids of records that may be unsettled, those that expire first at the front.  KEYS[1] ids by expiry  ARGV[1] maximum
return redis.call('ZRANGEBYSCORE', KEYS[1], string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[1])
