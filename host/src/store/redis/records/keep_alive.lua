-- The owner lives: its record's lock lasts for longer, and so does its place while its caller is there.
-- KEYS[6] list of its equals  [7] index of the part
-- Returns whether the entry is the owner's, and whether the record is.
-- ARGV[2] owner  [3] lease  [4] how long orphans are kept  [5] lock  [6] '1': its caller is there
local r = held(ARGV[2])
if r then
  r.e = math.max(r.e, now + tonumber(ARGV[5]))
  write(r)
  schedule(r, r.e)
end
local entry = own(listed(KEYS[6], KEYS[7], tonumber(ARGV[4])), ARGV[1], ARGV[2])
if not entry then return { 'lost', r and '1' or '0' } end
if ARGV[6] == '1' then
  entry.alive = now + tonumber(ARGV[3])
  tell(KEYS[6], KEYS[7], entry, tonumber(ARGV[4]))
end
return { 'ours', r and '1' or '0' }
