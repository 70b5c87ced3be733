-- Replace what an operation holds, or was charged when its lease ran out, by what it used; emit its record.
-- ARGV: clock override, operation, month of admission (0: no ledgers), tokens used, cost used, record (JSON, '' emits
-- none), when (µs) the record went to the database by another way ('' if it did not), the error that those share who
-- wait for its flight ('' without), then names of subjects.
-- Answers {state before: 'o', 'b', 's' or '', tokens charged, cost charged, overrun}, or {'missing', numbers}.

local FIRST = 9
local now = clock(ARGV[1])
local second = math.floor(now / 1000000)
local operation, month = P .. 'o:' .. ARGV[2], ARGV[3]
local tokens, cost, recorded_at = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[7])

local v = redis.call('HMGET', operation, 'z', 's', 'm', 't', 'c', 'y', 'x', 'f')
local state = v[1] or ''
if state == 's' then
  return { 's', tonumber(v[4] or 0), tonumber(v[5] or 0), tonumber(v[7] or 0) }
end
local held_tokens, held_cost = tonumber(v[4] or 0), tonumber(v[5] or 0)

-- A late settle: correct the charge of the bound in the ledgers, and in the window if it is still there.
local function replace(subjects, month_charged, bucket)
  for name in string.gmatch(subjects, '%S+') do
    local w = window_load(P .. name .. ':w', second)
    if bucket > second - TOKEN_WINDOW_SECONDS then
      redis.call('HINCRBY', w.key, str(bucket), tokens - held_tokens)
      local empty = w.h == 0 or w.h > w.l
      w.h, w.l = empty and bucket or math.min(w.h, bucket), math.max(w.l, bucket)
      w.s = w.s + tokens - held_tokens
      window_save(w)
    end
    ledger_move(P .. name .. ':m:' .. month_charged, tokens - held_tokens, cost - held_cost, 0, 0)
  end
end

-- An operation nobody remembers: charge it, except where the seed from the database has it already.
local function charge_unknown()
  local missing = { 'missing' }
  local seeded = {}
  for i = FIRST, #ARGV do
    seeded[i] = redis.call('HGET', P .. ARGV[i] .. ':m:' .. month, 'at')
    if not seeded[i] then
      missing[#missing + 1] = i - FIRST + 1
    end
  end
  if #missing > 1 then
    return missing
  end
  for i = FIRST, #ARGV do
    local w = window_load(P .. ARGV[i] .. ':w', second)
    if tokens > 0 then
      window_add(w, second, tokens)
      window_save(w)
    end
    if seeded[i] and not (recorded_at and tonumber(seeded[i]) > recorded_at) then
      ledger_move(P .. ARGV[i] .. ':m:' .. month, tokens, cost, 0, 0)
    end
  end
end

local overrun = 0
if state == 'o' then
  end_flight(ARGV[2], v[8], ARGV[8], now)
  conclude(v[2], v[3], held_tokens, held_cost, tokens, cost, now)
  redis.call('ZREM', P .. 'l', ARGV[2])
elseif state == 'b' then
  replace(v[2], v[3], tonumber(v[6]))
elseif month ~= NO_MONTH and (tokens > 0 or cost > 0) then
  local missing = charge_unknown()
  if missing then
    return missing
  end
end
if state ~= '' and (tokens > held_tokens or cost > held_cost) then
  overrun = 1
end

if ARGV[6] ~= '' then
  emit('o', ARGV[2], 'x', overrun, 'r', ARGV[6])
end
local ttl = (state == 'b' or recorded_at) and CHARGED_TTL or SETTLED_TTL
if month == NO_MONTH or (state == '' and tokens == 0 and cost == 0 and not recorded_at) then
  ttl = EMITTED_TTL
end
redis.call('DEL', operation)
redis.call('HSET', operation, 'z', 's', 't', tokens, 'c', cost, 'x', overrun)
redis.call('EXPIRE', operation, ttl)
return { state, tokens, cost, overrun }
