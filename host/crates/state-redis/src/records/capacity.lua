-- Whether the part has space for one more record, after expired ones are removed if needed.
local function has_room(cap)
  forget_expired()
  if redis.call('ZCARD', KEYS[2]) < cap then return true end
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', whole(now))
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', whole(now))
  return redis.call('ZCARD', KEYS[2]) < cap
end

-- The same for a request without a key: refused at half the cap of unsettled records, so that keyed requests keep the other half.
local function has_room_without_key(cap)
  if not has_room(cap) then return false end
  local half = math.ceil(cap / 2)
  if redis.call('ZCARD', KEYS[3]) < half then return true end
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', whole(now))
  return redis.call('ZCARD', KEYS[3]) < half
end
