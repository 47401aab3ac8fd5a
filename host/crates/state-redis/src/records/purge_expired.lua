-- Removes the ids of expired records and entries from a part's indexes.
-- KEYS[1] ids of all records, by expiry  [2] those that may be unsettled  [3] those to be verified, by time of verification
--      [4] unanswered requests, by expiry
for _, index in ipairs({ KEYS[1], KEYS[2], KEYS[4] }) do
  redis.call('ZREMRANGEBYSCORE', index, '-inf', string.format('%.0f', now))
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now), 'LIMIT', 0, 1000)) do
  if not redis.call('ZSCORE', KEYS[1], id) then redis.call('ZREM', KEYS[3], id) end
end
return { 'done' }
