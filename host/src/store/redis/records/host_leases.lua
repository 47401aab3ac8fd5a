-- A part's hosts, by the end of their heartbeats' leases. What ended this long ago says nothing that a lock's own end does not.
local FORGET_HOSTS_US = 3600000000

local function beat(key, host, lease)
  redis.call('ZADD', key, string.format('%.0f', now + lease), host)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now - FORGET_HOSTS_US))
  redis.call('PEXPIRE', key, string.format('%.0f', FORGET_HOSTS_US / 1000))
end
