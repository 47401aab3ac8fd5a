-- Restores a host's copy of a record on a server that has lost data.
-- KEYS[6]  the part's marker
-- ARGV[2] era  [3] fingerprint  [4] lifetime  [5] state  [6] holder's fence  [7] age of the state
--      [8] time until the lock ends  [9] age of its last send  [10] age of an earlier holder's last byte, or ''
--      [11] sealed response  [12], [13] name and sealed request, as in sent.lua  [14] time until the next verification, or ''
--      [15] this host, if its heartbeat keeps the record alive, else ''
--      [16] how long ago records were last lost, or ''  [17] lease of a heartbeat
--      [18] idempotency key that the holder sends to the upstream, or ''  [19] the key that all sends carried, '-' or ''
--      [20] age of the first of those sends, or ''  [21] lifetime of a response
if redis.call('GET', KEYS[6]) ~= server(ARGV[2]) then return { 'strange' } end
local function ago(word)
  local time = tonumber(word)
  return time and math.max(now - time, 0)
end
local lost_ago, lease = tonumber(ARGV[16]), tonumber(ARGV[17])
local mine = { f = ARGV[3], k = tonumber(ARGV[4]), s = ARGV[5], b = ago(ARGV[7]), t = ago(ARGV[9]), p = ago(ARGV[10]) }
if mine.s == 'h' then
  mine.o, mine.e, mine.h = ARGV[6], now + tonumber(ARGV[8]), ARGV[15] ~= '' and ARGV[15] or nil
  mine.q = ARGV[18] ~= '' and ARGV[18] or nil
end
if mine.s ~= 'd' then
  mine.w, mine.x = ARGV[19] ~= '' and ARGV[19] or nil, ago(ARGV[20])
  mine.d = tonumber(ARGV[21])
end
-- `kept` may leave an older record instead of this host's newer one, such as an unknown record from before the loss although
-- there is a holder now. That is safe: `begin` doubts every record whose state is older than a loss.
if expires(mine) <= now or (mine.s == 'h' and mine.e <= now) then return { 'kept' } end
local r = read()
if r and expires(r) <= now then r = nil end
if r then
  if r.f ~= mine.f or r.s == 'd' or r.s == 'c' then return { 'kept' } end
  if not doubtful(r) then
    if r.s == 'h' and now < ends(r, lost_ago, lease) then return { 'busy' } end
    if mine.s ~= 'd' then
      if r.s ~= 'u' or mine.s ~= 'u' then return { 'kept' } end
      mine.t, mine.w, mine.x = later(r.t, mine.t), '-', nil
    end
  end
end
redis.call('HDEL', KEYS[1], 'a', 'i')
if mine.s == 'd' then redis.call('HSET', KEYS[1], 'a', ARGV[11]) end
intend(mine, ARGV[12], ARGV[13])
write(mine)
local wait = tonumber(ARGV[14])
schedule(mine, wait and now + wait)
if mine.h then beat(KEYS[5], ARGV[15], lease) end
return { 'done' }
