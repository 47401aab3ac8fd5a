-- The queue of a fingerprint's lock: its first member holds the lock as long as it renews its lease.
local function digits(number)
  return string.format('%.0f', number)
end

-- Enqueues or renews a member; true: it is the first. `alone`: do not enqueue behind others.
local function enter(queue, alive, member, lease, alone)
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', alive, '-inf', digits(now))) do
    redis.call('ZREM', queue, dead)
    redis.call('ZREM', alive, dead)
  end
  if not redis.call('ZSCORE', queue, member) then
    local last = redis.call('ZREVRANGE', queue, 0, 0, 'WITHSCORES')
    if alone and last[1] then return false end
    local place = now
    if last[2] and tonumber(last[2]) >= now then place = tonumber(last[2]) + 1 end
    redis.call('ZADD', queue, digits(place), member)
  end
  redis.call('ZADD', alive, digits(now + lease), member)
  local long = digits(math.ceil(lease / 1000) * 4)
  redis.call('PEXPIRE', queue, long)
  redis.call('PEXPIRE', alive, long)
  return redis.call('ZRANGE', queue, 0, 0)[1] == member
end
