-- The owner leaves its record: unknown if a byte may have been sent, else forgotten.
-- ARGV[2] owner's fence  [3] how long ago the owner last sent a byte, or '' for never
--      [4] time until the next verification, or '' for none  [5], [6] name and sealed request, as in sent.lua
local r = held(ARGV[2])
if not r then return { 'lost' } end
local ago, wait = tonumber(ARGV[3]), tonumber(ARGV[4])
local sent = later(r.p, ago and later(math.max(now - ago, 0), r.t))
if sent then
  -- Verification was given up, and nothing was sent since: do not verify again.
  local given_up = r.g and not ago
  if given_up then wait = nil end
  local request = given_up and '' or ARGV[6]
  intend(r, ARGV[5], request)
  local answer = left_as(r, request)
  -- Without a verification, no host needs the request.
  if not wait then drop_request(r) end
  local left = {
    f = r.f, k = r.k, d = r.d, s = 'u', b = now, t = sent, l = r.l, w = r.w, x = r.x, y = (r.y and not ago) and '1' or nil,
    g = not wait and '1' or nil
  }
  write(left)
  schedule(left, wait and now + wait)
  return answer
else
  forget()
end
return { 'done' }
