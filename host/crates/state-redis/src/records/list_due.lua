-- Ids of records whose verification is due, the longest due first.
-- KEYS[1] ids by time of verification  [2] ids of all records, by expiry  ARGV[1] maximum
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now), 'LIMIT', 0, ARGV[1])) do
  local expires = redis.call('ZSCORE', KEYS[2], id)
  if expires and tonumber(expires) > now then
    found[#found + 1] = id
  else
    redis.call('ZREM', KEYS[1], id)
  end
end
return found
