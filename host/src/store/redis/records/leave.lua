-- ARGV[2] fence  [3] how long ago its holder last sent a byte, or '' for never
local r = held(ARGV[2])
if not r then return { 'lost' } end
local ago = tonumber(ARGV[3])
local sent = later(r.p, ago and later(math.max(now - ago, 0), r.t))
if sent then
  write({ f = r.f, k = r.k, s = 'u', b = now, t = sent })
else
  forget()
end
return { 'done' }
