-- Whether the part has room for one more record. What has expired makes room.
local function has_room(cap)
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', whole(now), 'LIMIT', 0, 16)) do
    redis.call('ZREM', KEYS[2], dead)
    redis.call('ZREM', KEYS[3], dead)
    redis.call('ZREM', KEYS[4], dead)
  end
  if redis.call('ZCARD', KEYS[2]) < cap then return true end
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', whole(now))
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', whole(now))
  return redis.call('ZCARD', KEYS[2]) < cap
end
