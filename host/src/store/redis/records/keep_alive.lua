-- The owner lives: its record's lock lasts for longer, and so does its place while its caller is there.
-- KEYS[6] list of its equals  [7] index of the part
-- Returns whether the entry is the owner's ('gone': no owner has it), and whether the record is.
-- ARGV[2] owner  [3] lease  [4] how long orphans are kept  [5] lock  [6] '1': its caller is there
--      [7] equal requests at most, where one that is gone was lost by the server and is listed again; or ''
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
