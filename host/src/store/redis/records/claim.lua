-- KEYS[1] whose it is  ARGV[1] who asks  [2] for how many milliseconds at least
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return { 'taken' } end
local left = redis.call('PTTL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', string.format('%.0f', math.max(tonumber(ARGV[2]), left)))
return { 'ours' }
