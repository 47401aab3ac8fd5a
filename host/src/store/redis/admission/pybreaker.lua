-- The breaker of Python workers beside it: pybreaker's CircuitRedisStorage, whose four keys show this one. Inert without them.
--
-- KEYS[4]  state: closed, open or half-open     KEYS[5]  failures in a row, theirs and ours
-- KEYS[6]  successes while half-open            KEYS[7]  when it opened: whole seconds since 1970
--
-- A step begins by taking over what they did since the last one, and ends by showing how the breaker stands then. Half-open is
-- shown as open since just now: a worker that finds it open for its reset_timeout probes by itself.
if KEYS[4] then
  local seen, failures, _, opened = unpack(redis.call('MGET', KEYS[4], KEYS[5], KEYS[6], KEYS[7]))
  local function whole(word) return word and #word <= 10 and string.match(word, '^%d+$') and tonumber(word) end
  local function shown() return (gate.st == '1' or gate.st == '2') and 'open' or 'closed' end
  local before = shown()
  -- Whether what is seen was shown by us, or changed by them since. At the first look, and after steps of hosts that do not show
  -- it, nobody can say: open wins.
  local mirrored = gate.py == before
  -- An operator's word stands against theirs.
  local forced = (gate.st == '3' or gate.st == '1' and gate.wy == 'o') and number('un') > now

  local failed = whole(failures)
  if failed and gate.st == '0' and failed ~= number('fr') then
    failed = math.min(failed, 1000000000)
    if failed > number('fr') then
      -- What hosts have saved up is older than these, or as good as.
      theirs = failed - number('fr')
      redis.call('ZADD', KEYS[2], text(now), 'pybreaker')
    end
    put('fr', failed)
  end
  if not forced then
    if (seen == 'open' and before == 'closed') or (seen == 'half-open' and (before == 'closed' or mirrored)) then
      open('y', 0, open_time(0))
    elseif seen == 'closed' and before == 'open' and mirrored then
      enter(CLOSED)
      afresh()
      publish()
    end
  end

  -- Whether the next probe is ours: until the breaker has stood ready for it so long that nobody seems to call here any more.
  local function ours() return now < number('un') + setting(16) or #leases() > 0 end

  mirror = function()
    local wanted, moment, since = shown(), div(now, 1000000), whole(opened)
    -- Held closed by an operator, nothing counts.
    local row = gate.st == '3' and '0' or text(number('fr'))
    -- As pybreaker has it: never moved back, if it is a time at all.
    if since and since > moment and since <= moment + 60 then moment = since end
    if wanted ~= before or wanted ~= seen then
      if wanted == 'open' then
        redis.call('MSET', KEYS[4], wanted, KEYS[5], row, KEYS[6], '0', KEYS[7], text(moment))
      else
        redis.call('MSET', KEYS[4], wanted, KEYS[5], row, KEYS[6], '0')
      end
    elseif wanted == 'open' then
      if not since or (moment ~= since and ours()) then redis.call('SET', KEYS[7], text(moment)) end
    elseif failures ~= row then
      redis.call('SET', KEYS[5], row)
    end
    if gate.py ~= wanted then put('py', wanted) end
  end
end
