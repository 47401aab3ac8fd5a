-- KEYS[1] whose it is  [2] the mark of a part, where one step may touch both
-- ARGV[1] who asks  [2] for how many milliseconds at least, or '' to claim nothing  [3] era
if KEYS[2] and redis.call('GET', KEYS[2]) ~= server(ARGV[3]) then return { 'strange' } end
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return { 'taken' } end
if ARGV[2] == '' then return { owner and 'ours' or 'free' } end
local left = redis.call('PTTL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', string.format('%.0f', math.max(tonumber(ARGV[2]), left)))
return { 'ours' }
