-- The owner is alive: its record's lock is extended, and so is its entry while its caller is connected.
-- KEYS[6] list of equal requests  [7] index of the part
-- ARGV[2] owner  [3] lease  [4] how long orphans are kept  [5] lock  [6] '1': its caller is connected
--      [7] maximum of equal requests, if a missing entry was lost by the server and is listed again; else ''
-- Returns  'ours', 'lost' (another owner has the entry) or 'gone' (no entry), and whether the owner holds the record
local r = held(ARGV[2])
if r then
  r.e = math.max(r.e, now + tonumber(ARGV[5]))
  write(r)
  schedule(r, r.e)
end
local is_held = r and '1' or '0'
local entries = listed(KEYS[6], KEYS[7], tonumber(ARGV[4]))
local entry = own(entries, ARGV[1], ARGV[2])
if not entry then
  if is_listed(entries, ARGV[1]) then return { 'lost', is_held } end
  if ARGV[7] == '' or #entries >= tonumber(ARGV[7]) then return { 'gone', is_held } end
  entry = { id = ARGV[1], since = arrival(entries), owner = ARGV[2] }
end
if ARGV[6] == '1' then
  entry.alive = now + tonumber(ARGV[3])
  tell(KEYS[6], KEYS[7], entry, tonumber(ARGV[4]))
end
return { 'ours', is_held }
