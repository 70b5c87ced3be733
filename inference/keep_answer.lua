-- Cache an answer, and forget others to make room for it: always the oldest of the account that has most, so that an
-- account with many answers pushes out its own. Answers 1 if it was stored.
-- KEYS: the answer's place, and what is written down of all: accounts by their bytes; accounts by when (ms) the first
-- of their answers is over; the bytes of all; the beginning of the names of each account's answers, `<bytes> <place>`
-- by when they are over.
-- ARGV: the answer, ms for which it is kept, its account, most bytes of all, the share of maxmemory.
local OVERHEAD = 400 -- bytes that an answer takes beside itself, roughly
local AT_MOST = 100  -- that one call forgets
local place, holders, due, all, answers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local answer, lifetime, account, most = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local size = #answer + OVERHEAD

-- Answer how many bytes may still be taken until a share of maxmemory is in use (any number where there is none), and
-- whether this Redis makes room by itself.
local function room(share)
  local told = redis.call('INFO', 'memory')
  local most = tonumber(string.match(told, '\nmaxmemory:(%d+)') or 0)
  if most == 0 then
    return math.huge, false
  end
  local used = tonumber(string.match(told, '\nused_memory:(%d+)'))
  return most * share - used, string.match(told, '\nmaxmemory_policy:allkeys') ~= nil
end

local function forget(holder, member)
  local bytes = string.match(member, '^%d+')
  redis.call('ZREM', answers .. holder, member)
  redis.call('DECRBY', all, bytes)
  if tonumber(redis.call('ZINCRBY', holders, '-' .. bytes, holder)) <= 0 then
    redis.call('ZREM', holders, holder)
  end
end

local function note_due(holder)
  local first = redis.call('ZRANGE', answers .. holder, 0, 0, 'WITHSCORES')
  if first[1] then
    redis.call('ZADD', due, first[2], holder)
  else
    redis.call('ZREM', due, holder)
  end
end

local function forget_expired()
  local late = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 1)[1]
  if late then
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', answers .. late, '-inf', now, 'LIMIT', 0, AT_MOST)) do
      forget(late, member)
    end
    note_due(late)
  end
end

-- Delete the oldest answer of the account that has most; answer the bytes that count no more, and those that are free
-- by that; nil if there is none.
local function make_room()
  local holder = redis.call('ZREVRANGE', holders, 0, 0, 'WITHSCORES')
  if not holder[1] then
    return nil
  end
  local oldest = redis.call('ZRANGE', answers .. holder[1], 0, 0)[1]
  if not oldest then -- somebody deleted what was written down
    redis.call('ZREM', holders, holder[1])
    redis.call('DECRBY', all, holder[2])
    return tonumber(holder[2]), 0
  end
  local bytes = tonumber(string.match(oldest, '^%d+'))
  forget(holder[1], oldest)
  note_due(holder[1])
  redis.call('DEL', string.match(oldest, ' (.*)'))
  return bytes, bytes
end

local free, forgets = room(tonumber(ARGV[5]))
if forgets then
  redis.call('SET', place, answer, 'PX', lifetime)
  return 1
end
forget_expired()
local old = redis.call('STRLEN', place)
for _, bytes in ipairs({ size, old > 0 and old + OVERHEAD or nil }) do
  local member = bytes .. ' ' .. place
  if redis.call('ZSCORE', answers .. account, member) then
    forget(account, member)
  end
end
local taken = tonumber(redis.call('GET', all) or 0)
if size > most or size > free + taken then
  redis.call('DEL', place)
  return 0
end
for _ = 1, AT_MOST do
  if taken + size <= most and size <= free then
    redis.call('SET', place, answer, 'PX', lifetime)
    redis.call('ZADD', answers .. account, now + lifetime, size .. ' ' .. place)
    redis.call('ZINCRBY', holders, size, account)
    redis.call('INCRBY', all, size)
    note_due(account)
    return 1
  end
  local counted, freed = make_room()
  if not counted then
    break
  end
  taken, free = taken - counted, free + freed
end
redis.call('DEL', place)
return 0
