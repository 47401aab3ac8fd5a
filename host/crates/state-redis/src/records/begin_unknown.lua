-- Creates the record of a write that began without one and ended with unknown effect.
-- ARGV[2] fingerprint  [3] lifetime  [4] how long ago its last byte was sent  [5] time until the next verification, or '' for none
--      [6], [7] name and sealed request, as in sent.lua  [8] maximum of records
--      [9] lifetime once there is a response, or '' for the same
local r = read()
if r and now < expires(r) then return { 'there' } end
if not has_room_without_key(tonumber(ARGV[8])) then return { 'full' } end
redis.call('HDEL', KEYS[1], 'a', 'i')
local left = {
  f = ARGV[2], k = tonumber(ARGV[3]), d = tonumber(ARGV[9]), s = 'u', b = now, t = math.max(now - tonumber(ARGV[4]), 0),
  w = '-'
}
intend(left, ARGV[6], ARGV[7])
local answer, wait = left_as(left, ARGV[7]), tonumber(ARGV[5])
if not wait then
  drop_request(left)
  left.g = '1'
end
write(left)
schedule(left, wait and now + wait)
return answer
