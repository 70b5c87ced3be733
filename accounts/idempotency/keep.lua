-- Keep an answer in the place of its lease, and drop the account's oldest ones that there is no room for beside it: in
-- what the account may keep, and in Redis. Answers 1, or 0 if there is no room even so.
-- KEYS: the place of the answer, the account's names by when (µs) they were kept, the bytes of each name and 'total'.
-- ARGV: the answer, seconds for which it is kept, its name, its bytes, bytes that an account may keep, the share of
-- maxmemory that may be in use.
local AT_MOST = 500 -- over their time are forgotten on the way: an account may have kept a hundred thousand
local place, order, sizes = KEYS[1], KEYS[2], KEYS[3]
local kept_for, name, size, most = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local base = string.sub(place, 1, #place - #name)

local function forget(gone)
  local bytes = redis.call('HGET', sizes, gone)
  if bytes then
    redis.call('HINCRBY', sizes, 'total', '-' .. bytes)
    redis.call('HDEL', sizes, gone)
  end
  redis.call('ZREM', order, gone)
end

forget(name)
local expired = now - kept_for * 1000000
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', order, '-inf', string.format('%.0f', expired), 'LIMIT', 0, AT_MOST)) do
  forget(gone)
end
local free = room(tonumber(ARGV[6]))
while tonumber(redis.call('HGET', sizes, 'total') or 0) + size > most or size > free do
  local oldest = redis.call('ZRANGE', order, 0, 0, 'WITHSCORES')
  if not oldest[1] then
    break
  end
  if tonumber(oldest[2]) > expired then -- else it is gone, and a new request may have its place
    free = free + tonumber(redis.call('HGET', sizes, oldest[1]) or 0)
    redis.call('UNLINK', base .. oldest[1])
  end
  forget(oldest[1])
end
if size > free then
  return 0
end

redis.call('SET', place, ARGV[1], 'EX', kept_for)
redis.call('ZADD', order, string.format('%.0f', now), name)
redis.call('HSET', sizes, name, size)
redis.call('HINCRBY', sizes, 'total', size)
redis.call('EXPIRE', order, kept_for)
redis.call('EXPIRE', sizes, kept_for)
return 1
