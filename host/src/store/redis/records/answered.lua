-- The owner's caller has its answer: nothing is left to adopt.
-- KEYS[6] list of its equals  [7] index of the part  ARGV[2] owner  [3] how long orphans are kept  [4] '1': the record goes too
local entry = own(listed(KEYS[6], KEYS[7], tonumber(ARGV[3])), ARGV[1], ARGV[2])
if entry then drop(KEYS[6], KEYS[7], ARGV[1]) end
-- Without its entry it still holds its record, unless the new owner has that too.
if ARGV[4] == '1' and (entry or held(ARGV[2])) then forget() end
return { entry and 'done' or 'lost' }
