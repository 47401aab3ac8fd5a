-- Stores the response of a write.  ARGV[2] fence  [3] sealed response
local r = held(ARGV[2])
if not r then
  -- The same owner repeats the call, because the reply was lost.
  local done = read()
  if done and done.s == 'd' and done.o == ARGV[2] and now < expires(done) then return { 'done' } end
  return { 'lost' }
end
redis.call('HSET', KEYS[1], 'a', ARGV[3])
redis.call('HDEL', KEYS[1], 'i')
local done = { f = r.f, k = r.d or r.k, s = 'd', o = r.o, b = now }
write(done)
schedule(done, nil)
return { 'done' }
