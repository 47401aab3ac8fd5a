-- ARGV[2] fence
local r = held(ARGV[2])
if not r or r.e <= now then return { 'lost' } end
r.t = now
write(r)
return { 'done' }
