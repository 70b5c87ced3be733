-- Record a refusal: in a record of its own, or, once its owner had many in this minute, in the count of its kind.
-- reap.lua emits the counts about two seconds later, so that very many refusals make few entries.
-- ARGV: clock override, operation, record (JSON), owner, kind, how many refusals of an owner a minute have own records.
-- Returns 1, 0 if it was recorded before, or -1, doing nothing, if the operation holds a reservation or was charged.

local PUBLISH_AFTER = 2000000 -- µs
local REFUSED_TTL = 10        -- seconds, for a retry after a lost reply; short, for there may be thousands a second
local now = clock(ARGV[1])
local operation, minute = P .. 'o:' .. ARGV[2], str(math.floor(now / MINUTE))

local state = redis.call('HGET', operation, 'z')
if state then
  return state == 's' and 0 or -1
end

local seen = P .. ARGV[4] .. ':f:' .. minute
local refusals = redis.call('INCR', seen)
redis.call('EXPIRE', seen, WINDOW_TTL)
if refusals <= tonumber(ARGV[6]) then
  emit('o', ARGV[2], 'x', 0, 'r', ARGV[3])
else
  local name = ARGV[4] .. ':' .. minute .. ':' .. ARGV[5]
  local sum = P .. 'f:' .. name
  if redis.call('HSETNX', sum, 'o', ARGV[2]) == 1 then
    redis.call('HSET', sum, 'r', ARGV[3], 'v', 1)
  end
  redis.call('HINCRBY', sum, 'n', 1)
  redis.call('EXPIRE', sum, LONG_TTL)
  redis.call('ZADD', P .. 'f', 'NX', str(now + PUBLISH_AFTER), name)
  redis.call('EXPIRE', P .. 'f', LONG_TTL)
end
redis.call('HSET', operation, 'z', 's')
redis.call('EXPIRE', operation, REFUSED_TTL)
return 1
