-- The look right before the send: breaker and pause are read again, and a probe's lease starts.
-- ARGV     due  moved  the ticket: epoch (two) and lease; none has an empty epoch
-- Answers  the breaker, then send  lease     wait  time     open  wait
local due = tonumber(ARGV[own]) + math.max(0, number('mv') - tonumber(ARGV[own + 1]))
due = math.max(due, number('pu'))
if due > now then return done('wait', text(due - now)) end
local random, counter, lease = ARGV[own + 2], ARGV[own + 3], ARGV[own + 4]
if random == '' or setting(9) ~= 1 then return done('send', '-1') end
if gate.er == random and gate.ec == counter then
  if lease == '-1' then
    if gate.st == '0' or gate.st == '3' then return done('send', lease) end
  elseif gate.st == '2' then
    local all = leases()
    for _, one in ipairs(all) do
      if one[1] == tonumber(lease) then
        one[2] = now + setting(19)
        put_leases(all)
        return done('send', lease)
      end
    end
  end
end
-- The epoch moved on while this attempt waited: it needs a ticket of the new one, perhaps a probe's.
local fresh, wait = admit()
if not fresh then return done('open', text(wait)) end
return done('send', fresh)
