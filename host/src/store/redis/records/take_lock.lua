-- KEYS[1] queue  [2] who of it lives  [3] the mark of a part, where one step may touch all
-- ARGV[1] who asks  [2] for how long it then counts as alive  [3] era
if KEYS[3] and redis.call('GET', KEYS[3]) ~= server(ARGV[3]) then return { 'strange' } end
if enter(KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2]), false) then return { 'ours' } end
return { 'waits' }
