-- Shares the breaker with Python workers: the four keys of pybreaker's CircuitRedisStorage mirror it. Does nothing without them.
--
-- KEYS[4]  state: closed, open or half-open     KEYS[5]  failures in a row, of workers and hosts
-- KEYS[6]  successes while half-open            KEYS[7]  time of opening: whole seconds since 1970
--
-- A script begins by applying what the workers changed since the last one, and ends by mirroring the breaker. Half-open is
-- mirrored as open since now: a worker that finds the breaker open for its reset_timeout would probe by itself.
if KEYS[4] then
  local seen, failures, _, opened = unpack(redis.call('MGET', KEYS[4], KEYS[5], KEYS[6], KEYS[7]))
  local function whole(word) return word and #word <= 10 and string.match(word, '^%d+$') and tonumber(word) end
  local function shown() return (gate.st == '1' or gate.st == '2') and 'open' or 'closed' end
  local before = shown()
  -- Whether the keys show what a script last wrote. At the first script, and after scripts of hosts without this mirror, it is
  -- unknown whether workers changed them: open wins.
  local mirrored = gate.py == before
  -- An operator's command takes precedence over the workers.
  local forced = (gate.st == '3' or gate.st == '1' and gate.wy == 'o') and number('un') > now

  local failed = whole(failures)
  if failed and gate.st == '0' and failed ~= number('fr') then
    failed = math.min(failed, 1000000000)
    if failed > number('fr') then
      -- Successes that hosts have saved up count as older than these failures.
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

  -- Whether the next probe belongs to Triage: until the breaker has been ready for a probe for so long that no requests seem to arrive.
  local function ours() return now < number('un') + setting(16) or #leases() > 0 end

  mirror = function()
    local wanted, moment, since = shown(), div(now, 1000000), whole(opened)
    -- While an operator holds the breaker closed, failures do not count.
    local row = gate.st == '3' and '0' or text(number('fr'))
    -- Like pybreaker, never move a valid opening time back.
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
