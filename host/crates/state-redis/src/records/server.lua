-- The content of a marker: the era, and the server's process and evictions as server_identity.lua compares them.
local function server(era)
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local evicted = string.match(redis.call('INFO', 'stats'), 'evicted_keys:(%d+)')
  return era .. '/' .. (run or '') .. '/' .. (evicted or '')
end
