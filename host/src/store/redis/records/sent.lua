-- ARGV[2] fence  [3], [4] what the bytes ask: name and sealed request, or '' where that is written already or not kept
local r = held(ARGV[2])
if not r or r.e <= now then return { 'lost' } end
r.t = now
intend(r, ARGV[3], ARGV[4])
write(r)
schedule(r, r.e)
return { 'done' }
