-- Lists of equal requests without a key that have no response yet, each with an owner; and an index of all entries of a part, by expiry.
-- list: id -> 'arrival:end of the lease:owner'
local function tell(list, index, entry, kept)
  redis.call('HSET', list, entry.id, whole(entry.since) .. ':' .. whole(entry.alive) .. ':' .. entry.owner)
  redis.call('ZADD', index, whole(entry.alive + kept), entry.id)
  local left = redis.call('PTTL', list)
  redis.call('PEXPIRE', list, whole(math.max(math.ceil((entry.alive + kept - now) / 1000) + 1000, left)))
end

local function drop(list, index, id)
  redis.call('HDEL', list, id)
  redis.call('ZREM', index, id)
end

local function listed(list, index, kept)
  local entries, flat, ahead = {}, redis.call('HGETALL', list), 0
  for i = 1, #flat, 2 do
    local since, alive, owner = string.match(flat[i + 1], '^(%d+):(%d+):(.*)$')
    local entry = { id = flat[i], since = tonumber(since), alive = tonumber(alive), owner = owner }
    ahead = math.max(ahead, entry.since - now)
    entries[#entries + 1] = entry
  end
  local living = {}
  for _, entry in ipairs(entries) do
    if ahead > 1000000 then
      -- The server's clock was set back: shift the entry's times too.
      entry.since = math.max(entry.since - ahead, 0)
      entry.alive = math.max(entry.alive - ahead, 0)
      tell(list, index, entry, kept)
    end
    if entry.alive + kept > now then
      living[#living + 1] = entry
    else
      drop(list, index, entry.id)
    end
  end
  return living
end

-- The arrival time of a new request: later than that of every listed one.
local function arrival(entries)
  local since = now
  for _, entry in ipairs(entries) do
    since = math.max(since, entry.since + 1)
  end
  return since
end

-- Whether the entry exists, whichever its owner.
local function is_listed(entries, id)
  for _, entry in ipairs(entries) do
    if entry.id == id then return true end
  end
  return false
end

-- The entry, if it belongs to this owner.
local function own(entries, id, owner)
  for _, entry in ipairs(entries) do
    if entry.id == id and entry.owner == owner then return entry end
  end
  return nil
end

-- Gives the oldest orphan to a new owner, except the entry `but`.
local function adopt(list, index, entries, owner, lease, kept, but)
  local oldest = nil
  for _, entry in ipairs(entries) do
    if entry.alive <= now and entry ~= but and (not oldest or entry.since < oldest.since) then oldest = entry end
  end
  if not oldest then return nil end
  oldest.owner, oldest.alive = owner, now + lease
  tell(list, index, oldest, kept)
  return oldest.id
end
