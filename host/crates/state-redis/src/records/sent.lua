-- Marks a record as sent, right before the first byte.
-- ARGV[2] fence  [3] name: '+' or '-' and upstream/endpoint  [4] sealed request; both '' if already stored, [4] '' if not kept
--      [5] this host  [6] lease of its heartbeat
local r = held(ARGV[2])
if not r or r.e <= now then return { 'lost' } end
r.t = now
r.g = nil
intend(r, ARGV[3], ARGV[4])
if r.q and not r.w then
  r.w, r.x = r.q, now
elseif r.w ~= r.q or not r.q then
  r.w, r.x = '-', nil
end
write(r)
schedule(r, math.min(r.e, now + tonumber(ARGV[6])))
beat(KEYS[5], ARGV[5], tonumber(ARGV[6]))
return { 'done' }
