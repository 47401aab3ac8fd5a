-- ARGV[2] sealed answer, or '' where the effect did not take place
local r = read()
if not unsettled(r) then return { 'not-unsettled' } end
if ARGV[2] == '' then
  forget()
else
  redis.call('HSET', KEYS[1], 'a', ARGV[2])
  write({ f = r.f, k = r.k, s = 'd', b = now })
end
return { 'done' }
