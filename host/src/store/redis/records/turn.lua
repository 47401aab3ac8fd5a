-- KEYS[1] queue  [2] who of it lives  ARGV[1] who asks  [2] for how long it then counts as alive
if enter(KEYS[1], KEYS[2], ARGV[1], tonumber(ARGV[2]), false) then return { 'ours' } end
return { 'waits' }
