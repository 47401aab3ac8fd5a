-- One record, and the indexes of its part. Times and durations in microseconds; whole numbers up to 2^53 are exact.
-- KEYS[1]  the record, a hash:
--          f fingerprint, k lifetime, d lifetime once there is a response (if different)
--          s state: h held, u unknown, d done, c cleared by an operator; b start of this state
--          o holder's fence, h holder's host, e end of the lock
--          t time of the last send that was marked, p time of an earlier holder's last byte
--          y 1 if a loss of data is the only reason why it may have been sent
--          a sealed response, i sealed request
--          l '+' (the request is kept) or '-' (it is not), then upstream/endpoint
--          q upstream's idempotency key that the holder sends; w the key of all sends so far, or '-' if they differ or had none;
--          x the first send with w
--          g 1 if verification was given up
-- KEYS[2]  ids of all records of the part, by expiry
-- KEYS[3]  ids of those that may be unsettled, by expiry
-- KEYS[4]  ids of those whose request is kept, by the time of their next verification
-- KEYS[5]  hosts of the part, by the end of their leases: see host_leases.lua
-- ARGV[1]  the record's id

-- Requests that a part keeps for verification: `MAX_KEPT_REQUESTS` in scripts.rs. Each takes up to 64 KiB, and its headers.
local max_kept_requests = 1024

local function whole(number)
  return string.format('%.0f', number)
end

local function read()
  local r = redis.call('HMGET', KEYS[1], 'f', 'k', 's', 'o', 'b', 'e', 't', 'p', 'l', 'q', 'w', 'x', 'h', 'y', 'd', 'g')
  if not r[3] then return nil end
  local record = {
    f = r[1], k = tonumber(r[2]), s = r[3], o = r[4], b = tonumber(r[5]), e = tonumber(r[6]), t = tonumber(r[7]),
    p = tonumber(r[8]), l = r[9] or nil, q = r[10] or nil, w = r[11] or nil, x = tonumber(r[12]), h = r[13] or nil, y = r[14] or nil,
    d = tonumber(r[15]), g = r[16] or nil
  }
  local back = math.max(record.b, record.t or 0) - now
  if back > 0 then
    -- The server's clock was set back: shift the record's times too, or its lock would last longer by that much.
    for _, name in ipairs({ 'b', 'e', 't', 'p', 'x' }) do
      record[name] = record[name] and math.max(record[name] - back, 0)
    end
    record.moved = true
  end
  return record
end

local function later(a, b)
  if a and (not b or a > b) then return a end
  return b
end

-- The latest time at which the holder may send: the end of its lock, or of its host's lease if that is earlier. The server may have
-- lost a renewal. So for one lease after a loss, a lease that it knows does not end a lock.
local function ends(r, lost_ago, lease)
  local host_until = r.h and tonumber(redis.call('ZSCORE', KEYS[5], r.h) or nil)
  if not host_until then return r.e end
  if lost_ago then host_until = math.max(host_until, now - lost_ago + lease) end
  return math.min(r.e, host_until)
end

-- The latest time at which a byte may have been sent, if the holder vanished: it may have sent until it ended.
local function last_byte(r, ended)
  return later(r.p, r.t and later(r.t, ended))
end

-- Whether a loss of data is the only reason why the request may have been sent.
local function doubtful(r)
  return r.y and (r.s == 'u' or (r.s == 'h' and not r.t))
end

local function expires(r)
  if r.s ~= 'h' then return r.b + r.k end
  if r.t or r.p then return r.e + r.k end
  return r.e
end

local function forget()
  redis.call('DEL', KEYS[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('ZREM', KEYS[4], ARGV[1])
end

-- Removes the ids of some expired records; bounded, so that one call stays short.
local function forget_expired()
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', whole(now), 'LIMIT', 0, 16)) do
    redis.call('ZREM', KEYS[2], dead)
    redis.call('ZREM', KEYS[3], dead)
    redis.call('ZREM', KEYS[4], dead)
  end
end

-- Whether the part has space for the request of this record.
local function has_room_for_request()
  if redis.call('ZSCORE', KEYS[4], ARGV[1]) or redis.call('ZCARD', KEYS[4]) < max_kept_requests then return true end
  forget_expired()
  return redis.call('ZCARD', KEYS[4]) < max_kept_requests
end

-- Sets the time of the next verification; nil for none. A record without its request is never verified.
local function schedule(r, at)
  if at and r.l and string.sub(r.l, 1, 1) == '+' then
    redis.call('ZADD', KEYS[4], whole(at), ARGV[1])
  else
    redis.call('ZREM', KEYS[4], ARGV[1])
  end
end

-- Deletes the request, and keeps the names of its upstream and endpoint.
local function drop_request(r)
  redis.call('HDEL', KEYS[1], 'i')
  r.l = r.l and '-' .. string.sub(r.l, 2)
end

-- Stores the holder's request, if given; only its names if the part has no space for more requests.
local function intend(r, name, request)
  if name == '' then return end
  r.l = name
  if request ~= '' and has_room_for_request() then redis.call('HSET', KEYS[1], 'i', request) else drop_request(r) end
end

-- The reply to an owner that leaves: 'names-only' if its request was not kept.
local function left_as(r, request)
  return { 'done', (request ~= '' and string.sub(r.l, 1, 1) == '-') and 'names-only' or '' }
end

-- Writes all fields except the response and the request, and updates the indexes.
local function write(r)
  local fields, void = { 'f', r.f, 'k', whole(r.k), 's', r.s, 'b', whole(r.b) }, {}
  for _, name in ipairs({ 'o', 'e', 't', 'p', 'l', 'q', 'w', 'x', 'h', 'y', 'd', 'g' }) do
    local value = r[name]
    if value then
      fields[#fields + 1] = name
      fields[#fields + 1] = type(value) == 'number' and whole(value) or value
    else
      void[#void + 1] = name
    end
  end
  redis.call('HSET', KEYS[1], unpack(fields))
  if #void > 0 then redis.call('HDEL', KEYS[1], unpack(void)) end
  local at = expires(r)
  -- One second longer than its lifetime: the times inside the record decide, not the key's expiry.
  redis.call('PEXPIRE', KEYS[1], whole(math.ceil((at - now) / 1000) + 1000))
  redis.call('ZADD', KEYS[2], whole(at), ARGV[1])
  if r.s == 'u' or (r.s == 'h' and (r.t or r.p)) then
    redis.call('ZADD', KEYS[3], whole(at), ARGV[1])
  else
    redis.call('ZREM', KEYS[3], ARGV[1])
  end
end

-- The record, if the owner with this fence holds it.
local function held(fence)
  local r = read()
  if r and r.s == 'h' and r.o == fence and now < expires(r) then return r end
  return nil
end

-- The time of the last byte sent, if the effect is unknown and no holder is verifying it; else nil.
local function unsettled(r, lost_ago, lease)
  if not r or expires(r) <= now then return nil end
  if r.s == 'u' then return r.t end
  if r.s ~= 'h' then return nil end
  local ended = ends(r, lost_ago, lease)
  if ended <= now then return last_byte(r, ended) end
  return nil
end
