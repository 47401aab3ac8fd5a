-- An operator settles an unsettled record.
-- ARGV[2] sealed response, or '' if the write was not applied  [3] how long ago records were last lost, or ''
--      [4] lease of a heartbeat
local r = read()
if not unsettled(r, tonumber(ARGV[3]), tonumber(ARGV[4])) then return { 'not-unsettled' } end
if ARGV[2] == '' and doubtful(r) then
  -- Keep it as cleared: without a record, the loss would put the request in doubt again.
  redis.call('HDEL', KEYS[1], 'i')
  local cleared = { f = r.f, k = r.k, s = 'c', b = now }
  write(cleared)
  schedule(cleared, nil)
elseif ARGV[2] == '' then
  forget()
else
  redis.call('HSET', KEYS[1], 'a', ARGV[2])
  redis.call('HDEL', KEYS[1], 'i')
  local done = { f = r.f, k = r.d or r.k, s = 'd', b = now }
  write(done)
  schedule(done, nil)
end
return { 'done' }
