-- Now, in microseconds, by the server's clock, so that hosts' clocks need not agree.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
