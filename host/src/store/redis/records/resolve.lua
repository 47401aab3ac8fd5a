-- ARGV[2] sealed answer, or '' where the effect did not take place
local r = read()
if not unsettled(r) then return { 'not-unsettled' } end
if ARGV[2] == '' then
  forget()
else
  redis.call('HSET', KEYS[1], 'a', ARGV[2])
  redis.call('HDEL', KEYS[1], 'i')
  local done = { f = r.f, k = r.k, s = 'd', b = now }
  write(done)
  schedule(done, nil)
end
return { 'done' }
