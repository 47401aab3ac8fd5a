-- The era of the data, and which process keeps it: as the census tells servers apart.
local function server(era)
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local evicted = string.match(redis.call('INFO', 'stats'), 'evicted_keys:(%d+)')
  return era .. '/' .. (run or '') .. '/' .. (evicted or '')
end
