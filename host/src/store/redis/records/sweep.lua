-- KEYS indexes of a part: forgets the ids of what has expired.
for _, index in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', index, '-inf', string.format('%.0f', now))
end
return { 'done' }
