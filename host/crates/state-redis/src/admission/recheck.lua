-- The recheck right before the send: reads breaker and pause again, and starts a probe's lease.
-- ARGV     due  moved  epoch (two; empty: no ticket) and lease of the ticket
-- Returns  the breaker, then send  lease     wait  time     open  wait     and, if a pause was lifted since the reservation,
--          the new reservation: due  moved  of each limit its arrival time before and after
local due, again = tonumber(ARGV[own]), {}
if tonumber(ARGV[own + 1]) < number('lf') then
  due = math.max(now, number('pu'))
  for i = 1, limits do
    local _, tolerance = limit(i)
    due = math.max(due, number(arrival[i]) - tolerance)
  end
  again = {text(due), text(number('mv'))}
  for i = 1, limits do
    local interval = limit(i)
    local before = number(arrival[i])
    put(arrival[i], math.max(before, due) + interval)
    again[1 + 2 * i] = text(before)
    again[2 + 2 * i] = gate[arrival[i]]
  end
else
  due = math.max(due + math.max(0, number('mv') - tonumber(ARGV[own + 1])), number('pu'))
end
if due > now then return done('wait', text(due - now), unpack(again)) end
local random, counter, lease = ARGV[own + 2], ARGV[own + 3], ARGV[own + 4]
if random == '' or setting(9) ~= 1 then return done('send', '-1', unpack(again)) end
if gate.er == random and gate.ec == counter then
  if lease == '-1' then
    if gate.st == '0' or gate.st == '3' then return done('send', lease, unpack(again)) end
  elseif gate.st == '2' then
    local all = leases()
    for _, one in ipairs(all) do
      if one[1] == tonumber(lease) then
        one[2] = now + setting(19)
        put_leases(all)
        return done('send', lease, unpack(again))
      end
    end
  end
end
-- The epoch changed while this attempt waited: it needs a ticket of the new one, perhaps a probe's.
local fresh, wait = admit()
if not fresh then return done('open', text(wait), unpack(again)) end
return done('send', fresh, unpack(again))
