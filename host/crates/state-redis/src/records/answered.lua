-- The owner's caller has received the response: the entry ends, so that no request adopts it.
-- KEYS[6] list of equal requests  [7] index of the part  ARGV[2] owner  [3] how long orphans are kept
--      [4] '1': delete the record too
local entry = own(listed(KEYS[6], KEYS[7], tonumber(ARGV[3])), ARGV[1], ARGV[2])
if entry then drop(KEYS[6], KEYS[7], ARGV[1]) end
-- An owner without its entry may still hold the record, unless the new owner has taken that too.
if ARGV[4] == '1' and (entry or held(ARGV[2])) then forget() end
return { entry and 'done' or 'lost' }
