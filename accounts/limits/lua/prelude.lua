-- Shared by every script of accounts.limits; scripts.py prepends it to each.
--
-- KEYS[1] is the prefix of a shard, `aiapi:{s17}:`. All keys derive from it, so all are in one slot of a cluster. The
-- shard of an account is its id modulo 64, that of a provider 64 + its id. A provider has no ledgers and no records, its
-- operations have the month 0 and its settled ones are forgotten after a minute.
--   <subject>:q        list     request log: times (µs) of the requests admitted in the last minute
--   <subject>:w        hash     n open slots, t open tokens, s settled tokens of the last minute, and these by second:
--                               h oldest and l latest second with any, <second> -> tokens
--   <subject>:m:YYYYMM hash     ledger: st sc settled tokens and cost, rt rc reserved, at when it was seeded (µs)
--   <subject>:f:<minute> string  refusals of a key in a minute
--   f:<key>:<minute>:<kind> hash counted refusals: o operation of the first, r its record, n count, v revision
--   f                  zset     names of the counts above with refusals not emitted yet, by when (µs) they are due
--   a:<operation>      string   when (µs) the operation was admitted
--   o:<operation>      hash     z state (o open, b bound charged, s settled), k attempt, s subjects, m month,
--                               t c tokens and cost held or charged, u output tokens, g those of the latest attempt,
--                               d draft, y second of the charge, x overrun, f key of the flight that it was given
--   l                  zset     open operations by the end of their lease (µs)
--   y:<key>            string   the flight of identical calls: the operation that leads it, and its process
--   y:<key>:ended      string   when (µs) the last one ended, and the error that those who waited share ('' without)
--   y:<key>:awaited    string   a call in another process waits for it
--   p:<process>        string   heartbeat: the process lives
--   records            stream   usage records for the ingester
-- Times and amounts are integers below 2^53. Never `..` a large one: Lua would write it as 1.7e+15; use str().

local P = KEYS[1]
local MINUTE = 60000000
local TOKEN_WINDOW_SECONDS = 61 -- a second's bucket leaves the window when its end is a minute old: never early
local WINDOW_TTL = 120   -- seconds
local LONG_TTL = 3888000 -- 45 days, for what must outlive an outage: open reservations, leases, records
local SETTLED_TTL = 3600
local EMITTED_TTL = 60   -- for operations that held and used nothing: only a retry after a lost reply looks them up
local CHARGED_TTL = 86400
local NO_MONTH = '0'
local ENDED_TTL = 5000     -- ms; longer than a caller takes from one look at a flight to the next
local HEARTBEAT_TTL = 1000 -- ms; backend.py renews it every HEARTBEAT_SECONDS

local function str(number)
  return string.format('%.0f', number)
end

local function clock(override)
  if override ~= '' then
    return tonumber(override)
  end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Return the latest time in a request log, 0 if it is empty. A log that is more than a window ahead of the clock was
-- written before the clock was set back, and would block requests for as long as that step: it is dropped.
local function log_latest(key, now)
  local last = tonumber(redis.call('LINDEX', key, -1) or 0)
  if last > now + MINUTE then
    redis.call('UNLINK', key)
    return 0
  end
  return last
end

local function log_add(key, now)
  redis.call('RPUSH', key, str(now))
  redis.call('EXPIRE', key, WINDOW_TTL)
end

-- Return when (µs) so many requests of a log will have left it.
local function log_reset(key, excess, now)
  local blocking = redis.call('LINDEX', key, excess - 1)
  return blocking and tonumber(blocking) + MINUTE or now + MINUTE
end

-- Return the number of requests in the last minute, after trimming older ones from the log. The search doubles its
-- steps, so it takes few calls whatever the length.
local function log_length(key, now)
  local gone, leap = 0, 1
  while true do
    local entry = redis.call('LINDEX', key, gone + leap - 1)
    if entry and tonumber(entry) + MINUTE <= now then
      gone = gone + leap
      leap = leap * 2
    elseif leap > 1 then
      leap = leap / 2
    else
      break
    end
  end
  if gone > 0 then
    redis.call('LTRIM', key, gone, -1)
  end
  return redis.call('LLEN', key)
end

local function window_save(w)
  redis.call('HSET', w.key, 'n', w.n, 't', w.t, 's', w.s, 'h', w.h, 'l', w.l)
  redis.call('EXPIRE', w.key, w.n > 0 and LONG_TTL or WINDOW_TTL)
end

-- Load a window, after removing the buckets that have left it.
local function window_load(key, second)
  local v = redis.call('HMGET', key, 'n', 't', 's', 'h', 'l')
  local w = { key = key, n = tonumber(v[1] or 0), t = tonumber(v[2] or 0), s = tonumber(v[3] or 0),
              h = tonumber(v[4] or 0), l = tonumber(v[5] or 0) }
  local gone = math.min(w.l, second - TOKEN_WINDOW_SECONDS)
  if w.h > 0 and w.h <= gone then
    local fields = {}
    for bucket = w.h, gone do
      fields[#fields + 1] = str(bucket)
    end
    for _, tokens in ipairs(redis.call('HMGET', key, unpack(fields))) do
      w.s = w.s - tonumber(tokens or 0)
    end
    redis.call('HDEL', key, unpack(fields))
    w.h = gone + 1
    window_save(w)
  end
  return w
end

-- Add settled tokens to the bucket of this second, or to the latest one if the clock has run backward.
local function window_add(w, second, tokens)
  second = math.max(second, w.l)
  if w.h == 0 or w.h > w.l then
    w.h = second
  end
  redis.call('HINCRBY', w.key, str(second), tokens)
  w.s = w.s + tokens
  w.l = second
  return second
end

-- Return when (µs) the window will be empty, if nothing is added.
local function window_reset(w, now)
  if w.t > 0 then
    return now + TOKEN_WINDOW_SECONDS * 1000000
  end
  return w.s > 0 and (w.l + TOKEN_WINDOW_SECONDS) * 1000000 or now
end

-- Return when (µs) enough settled tokens will have left a window; when open ones will leave is unknown.
local function tokens_reset(w, excess, now)
  local at = now + 1000000
  if w.s == 0 then
    return at
  end
  local fields = {}
  for bucket = w.h, w.l do
    fields[#fields + 1] = str(bucket)
  end
  for i, tokens in ipairs(redis.call('HMGET', w.key, unpack(fields))) do
    if excess <= 0 then
      break
    end
    if tokens then
      excess = excess - tonumber(tokens)
      at = (w.h + i - 1 + TOKEN_WINDOW_SECONDS) * 1000000
    end
  end
  return at
end

-- Add amounts to a ledger. A missing ledger stays missing: it will be seeded from the database.
local function ledger_move(key, settled_tokens, settled_cost, reserved_tokens, reserved_cost)
  local v = redis.call('HMGET', key, 'st', 'sc', 'rt', 'rc')
  if v[1] then
    redis.call('HSET', key, 'st', tonumber(v[1]) + settled_tokens, 'sc', tonumber(v[2]) + settled_cost,
      'rt', tonumber(v[3]) + reserved_tokens, 'rc', tonumber(v[4]) + reserved_cost)
  end
end

local function emit(...)
  redis.call('XADD', P .. 'records', '*', ...)
  redis.call('EXPIRE', P .. 'records', LONG_TTL)
end

-- Replace the bound that an open operation holds by a charge, for each subject; returns the second of the charge.
local function conclude(subjects, month, held_tokens, held_cost, tokens, cost, now)
  local second = math.floor(now / 1000000)
  local charged = second
  for name in string.gmatch(subjects, '%S+') do
    local w = window_load(P .. name .. ':w', second)
    w.n = math.max(0, w.n - 1)
    w.t = math.max(0, w.t - held_tokens)
    if tokens > 0 then
      charged = window_add(w, second, tokens)
    end
    window_save(w)
    ledger_move(P .. name .. ':m:' .. month, tokens, cost, -held_tokens, -held_cost)
  end
  return charged
end

-- Return the operation that leads a flight, and its process; nil without one.
local function leader(flight)
  return string.match(redis.call('GET', flight) or '', '^(%S+) (%S+)$')
end

-- End the flight of an operation that still leads it. This comes before all other writes: a Redis that is full refuses
-- those that take memory, except in a script that has already written.
local function end_flight(operation, key, error, now)
  local flight = P .. 'y:' .. (key or '')
  if key and leader(flight) == operation then
    redis.call('DEL', flight)
    redis.call('SET', flight .. ':ended', str(now) .. ' ' .. error, 'PX', ENDED_TTL)
  end
end

-- Charge the bound of up to `at_most` reservations whose lease has expired; returns how many.
local function reap(now, at_most)
  local expired = redis.call('ZRANGEBYSCORE', P .. 'l', '-inf', str(now), 'LIMIT', 0, at_most)
  for _, operation in ipairs(expired) do
    local key = P .. 'o:' .. operation
    local v = redis.call('HMGET', key, 'z', 's', 'm', 't', 'c', 'u', 'd', 'f')
    if v[1] == 'o' then
      end_flight(operation, v[8], '', now)
      local tokens, cost = tonumber(v[4]), tonumber(v[5])
      local charged = conclude(v[2], v[3], tokens, cost, tokens, cost, now)
      if v[3] ~= NO_MONTH then
        emit('o', operation, 't', v[4], 'c', v[5], 'u', v[6], 'r', v[7])
      end
      redis.call('HDEL', key, 'd')
      redis.call('HSET', key, 'z', 'b', 'y', charged)
      redis.call('EXPIRE', key, CHARGED_TTL)
    end
    redis.call('ZREM', P .. 'l', operation)
  end
  return #expired
end
