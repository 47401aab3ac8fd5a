-- A listed request that has sent nothing checks again for an orphan. If it adopts one, its own entry and record are deleted.
-- KEYS[6] list of equal requests  [7] index of the part  ARGV[2] owner  [3] lease  [4] how long orphans are kept
local entries = listed(KEYS[6], KEYS[7], tonumber(ARGV[4]))
local mine = own(entries, ARGV[1], ARGV[2])
if not mine then return { 'lost' } end
local adopted = adopt(KEYS[6], KEYS[7], entries, ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), mine)
if not adopted then return { 'none' } end
drop(KEYS[6], KEYS[7], ARGV[1])
if held(ARGV[2]) then forget() end
return { 'adopted', adopted }
