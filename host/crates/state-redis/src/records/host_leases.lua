-- A part's hosts, by the end of their leases. After an hour a record's own lock has expired too, so the lease is not needed.
local FORGET_HOSTS_US = 3600000000

local function beat(key, host, lease)
  redis.call('ZADD', key, string.format('%.0f', now + lease), host)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now - FORGET_HOSTS_US))
  redis.call('PEXPIRE', key, string.format('%.0f', FORGET_HOSTS_US / 1000))
end
