-- Compares the servers' identities with those seen last, and begins a new era if one changed: the server may have lost data.
-- KEYS[1]  hash: id (of the era), lost (ms), run:<address> for each master, part:<n> for each part with a marker in this era
-- ARGV     an id for an era that begins now, the id that this host knows or '', then address and run of each master
-- Returns  the id, and how many milliseconds ago data was last lost, or -1
local known = redis.call('HGETALL', KEYS[1])
local fields = {}
local runs = 0
local parts = {}
for i = 1, #known, 2 do
  fields[known[i]] = known[i + 1]
  if string.sub(known[i], 1, 4) == 'run:' then runs = runs + 1 end
  if string.sub(known[i], 1, 5) == 'part:' then parts[#parts + 1] = known[i] end
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local id = fields['id']
-- The host knows another era than this hash: data was lost, unless `lost` has recorded the loss already.
local lost = ARGV[2] ~= '' and id ~= ARGV[2] and not fields['lost']
local changed = {}
for i = 3, #ARGV, 2 do
  local field = 'run:' .. ARGV[i]
  if fields[field] ~= ARGV[i + 1] then
    -- A new master took the role of another one, perhaps without its last writes.
    if runs > 0 then lost = true end
    changed[#changed + 1] = field
    changed[#changed + 1] = ARGV[i + 1]
  end
end
local since = tonumber(fields['lost'])
if lost then
  since = now
  changed[#changed + 1] = 'lost'
  changed[#changed + 1] = string.format('%.0f', now)
end
if lost or not id then
  id = ARGV[1]
  changed[#changed + 1] = 'id'
  changed[#changed + 1] = id
  if #parts > 0 then redis.call('HDEL', KEYS[1], unpack(parts)) end
end
if #changed > 0 then redis.call('HSET', KEYS[1], unpack(changed)) end
return {id, since and string.format('%.0f', math.max(0, now - since)) or '-1'}
