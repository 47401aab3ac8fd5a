-- The owner's caller has disconnected: the entry is an orphan from now on.
-- KEYS[6] list of equal requests  [7] index of the part  ARGV[2] owner  [3] how long orphans are kept
local entry = own(listed(KEYS[6], KEYS[7], tonumber(ARGV[3])), ARGV[1], ARGV[2])
if not entry then return { 'lost' } end
entry.alive = now
tell(KEYS[6], KEYS[7], entry, tonumber(ARGV[3]))
return { 'done' }
