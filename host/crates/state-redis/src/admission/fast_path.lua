-- The common case at half the cost: the breaker is closed and not shared with Python, and a first attempt, with the permits
-- to prefetch, passes every limit at once. The result equals that of acquire.lua: tests play the same histories on both.
local limits = tonumber(ARGV[23])
local own = 24 + 2 * limits
if #KEYS == 3 and ARGV[own] == 'first' and ARGV[6] == '0' and ARGV[own + 7] == '0' and limits <= 4 then
  local now = tonumber(ARGV[1])
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000000 + time[2]
  end
  local fields, distinct = {'st', 'er', 'ec', 'at', 'pu', 'mv', 'tk', 'wb', 'nc'}, true
  for i = 1, limits do
    fields[9 + i] = 't' .. ARGV[22 + 2 * i] .. '/' .. ARGV[23 + 2 * i]
    for j = 1, i - 1 do distinct = distinct and fields[9 + j] ~= fields[9 + i] end
  end
  local gate = redis.call('HMGET', KEYS[1], unpack(fields))
  -- The server has older data than this host knows: acquire.lua handles it.
  local older = ARGV[#ARGV - 1] == gate[2] and tonumber(ARGV[#ARGV]) > tonumber(gate[3])
  local passes = gate[1] == '0' and distinct and not older and now >= (tonumber(gate[4]) or now) - 1000000 and now >= (tonumber(gate[5]) or 0)
  local permits = tonumber(ARGV[own + 6])
  for i = 1, limits do
    local headroom = now + ARGV[23 + 2 * i] - math.max(tonumber(gate[9 + i]) or 0, now)
    passes = passes and headroom >= 0
    permits = math.max(0, math.min(permits, (headroom - math.fmod(headroom, ARGV[22 + 2 * i])) / ARGV[22 + 2 * i]))
  end
  local saved_up = tonumber(ARGV[own + 4])
  if gate[2] ~= ARGV[own + 2] or gate[3] ~= ARGV[own + 3] then saved_up = 0 end
  -- A new bucket of the window must begin: acquire.lua handles it.
  if passes and (saved_up == 0 or now - gate[8] < math.max(1, tonumber(ARGV[13]))) then
    local at = string.format('%.0f', now)
    local tokens = math.min(gate[7] + (1 + ARGV[own + 5]) * ARGV[20] * 10, math.max(ARGV[22], 1) * 1000)
    local changed = {'at', at, 'tk', string.format('%.0f', tokens)}
    local answer = {gate[2], gate[3], '0', '0', '', 'go', '0', at, gate[6] or '0', '-1', permits}
    for i = 1, limits do
      local before = gate[9 + i] or '0'
      local after = math.max(tonumber(before), now) + ARGV[22 + 2 * i]
      changed[#changed + 1] = fields[9 + i]
      changed[#changed + 1] = string.format('%.0f', after + permits * ARGV[22 + 2 * i])
      answer[10 + 2 * i] = before
      answer[11 + 2 * i] = string.format('%.0f', after)
    end
    if saved_up > 0 then
      changed[#changed + 1] = 'nc'
      changed[#changed + 1] = string.format('%.0f', gate[9] + saved_up)
      changed[#changed + 1] = 'fr'
      changed[#changed + 1] = '0'
    end
    redis.call('HSET', KEYS[1], unpack(changed))
    return answer
  end
end
