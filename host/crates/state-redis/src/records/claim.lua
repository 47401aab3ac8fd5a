-- Claims a resource that the upstream created for one owner, or reads its owner.
-- KEYS[1] the claim: its owner  [2] the marker of a part; only if one script may touch both keys
-- ARGV[1] owner  [2] minimal lifetime in milliseconds, or '' to only read  [3] era
if KEYS[2] and redis.call('GET', KEYS[2]) ~= server(ARGV[3]) then return { 'strange' } end
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return { 'taken' } end
if ARGV[2] == '' then return { owner and 'ours' or 'free' } end
local left = redis.call('PTTL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', string.format('%.0f', math.max(tonumber(ARGV[2]), left)))
return { 'ours' }
