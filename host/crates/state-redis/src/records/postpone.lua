-- Postpones the verification of a record that no host can verify now, or gives it up.
-- ARGV[2] time until the next verification  [3] age of the write at which verification is given up
--      [4] how long ago records were last lost, or ''  [5] lease of a heartbeat
local r = read()
local sent = unsettled(r, tonumber(ARGV[4]), tonumber(ARGV[5]))
if not sent or not redis.call('ZSCORE', KEYS[4], ARGV[1]) then return { 'not-unsettled' } end
if now - sent >= tonumber(ARGV[3]) then
  drop_request(r)
  r.g = '1'
  write(r)
  schedule(r, nil)
  return { 'given-up' }
end
schedule(r, now + tonumber(ARGV[2]))
return { 'later' }
