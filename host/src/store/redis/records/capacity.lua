-- Whether the part has room for one more record. What has expired makes room.
local function has_room(cap)
  forget_expired()
  if redis.call('ZCARD', KEYS[2]) < cap then return true end
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', whole(now))
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', whole(now))
  return redis.call('ZCARD', KEYS[2]) < cap
end

-- The same for a request without a key. Unsettled records refuse it at half the cap: the other half stays free for keys.
local function has_room_without_key(cap)
  if not has_room(cap) then return false end
  local half = math.ceil(cap / 2)
  if redis.call('ZCARD', KEYS[3]) < half then return true end
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', whole(now))
  return redis.call('ZCARD', KEYS[3]) < half
end
