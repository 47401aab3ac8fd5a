-- Reads or notes that a part has its marker in this era, or ends the era because a marker is gone.
-- KEYS[1] the server's identity  ARGV[1] era  [2] part  [3] 'ask', 'note' or 'lose'  [4] an id for the next era
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return { 'strange' } end
local field = 'part:' .. ARGV[2]
if ARGV[3] == 'ask' then
  return { redis.call('HEXISTS', KEYS[1], field) == 1 and 'marked' or 'unmarked' }
elseif ARGV[3] == 'note' then
  redis.call('HSET', KEYS[1], field, '1')
else
  local parts = {}
  for _, name in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(name, 1, 5) == 'part:' then parts[#parts + 1] = name end
  end
  if #parts > 0 then redis.call('HDEL', KEYS[1], unpack(parts)) end
  redis.call('HSET', KEYS[1], 'id', ARGV[4], 'lost', string.format('%.0f', math.floor(now / 1000)))
end
return { 'done' }
