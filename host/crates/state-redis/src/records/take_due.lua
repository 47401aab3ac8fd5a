-- Takes a record whose verification is due, by postponing it, so that no other host takes it.
-- ARGV[2] time until the next verification  [3] how long ago records were last lost, or ''  [4] lease of a heartbeat
local r = read()
if not r or r.s == 'd' then
  -- A host of an earlier version, which does not maintain this index, has settled the record.
  redis.call('ZREM', KEYS[4], ARGV[1])
  return { 'later' }
end
local lost_ago, lease = tonumber(ARGV[3]), tonumber(ARGV[4])
local due = tonumber(redis.call('ZSCORE', KEYS[4], ARGV[1]))
if not due or due > now then return { 'later' } end
if not unsettled(r, lost_ago, lease) then
  -- The holder is alive: check again when its lock or lease may end.
  if r.s == 'h' and expires(r) > now then
    local ended = ends(r, lost_ago, lease)
    schedule(r, ended > now and ended)
  end
  return { 'later' }
end
schedule(r, now + tonumber(ARGV[2]))
return { 'taken', redis.call('HGET', KEYS[1], 'i') or '', string.sub(r.l, 2) }
