-- Emit the records of counted refusals that are due, and charge the bound of reservations whose lease has expired.
-- ARGV: clock override, how many of either at most. Returns how many reservations it charged.
local now, at_most = clock(ARGV[1]), tonumber(ARGV[2])

for _, name in ipairs(redis.call('ZRANGEBYSCORE', P .. 'f', '-inf', str(now), 'LIMIT', 0, at_most)) do
  local sum = P .. 'f:' .. name
  local v = redis.call('HMGET', sum, 'o', 'r', 'n')
  if v[1] then
    emit('o', v[1], 'r', v[2], 'n', v[3], 'v', redis.call('HINCRBY', sum, 'v', 1))
    redis.call('EXPIRE', sum, WINDOW_TTL)
  end
  redis.call('ZREM', P .. 'f', name)
end
return reap(now, at_most)
