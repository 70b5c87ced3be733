-- Take a slot and the bound of a call from all subjects, or nothing from any. An identical call decides before the
-- limits: while one is in flight, or if one has ended since, nothing is taken.
-- ARGV: as named below, then of each subject: name, tokens per minute, concurrent requests, monthly tokens, monthly cost,
-- requests per minute (-1 is unlimited; requests that admit.lua has counted are not counted again, so they are unlimited
-- here).
-- Answers {'ok', leads a flight, output, tokens held, cost held, time, lease end, then of each subject tokens used, their
-- reset}, {'closed'}, {'flight', is open, time (of its end if it failed), error}, {'missing', numbers of subjects}, or
-- {'refused', time, then of each refusal: number of the subject, number of the limit, used, reset, impossible}.

local FIRST, WIDTH = 19, 6
local AWAITED_TTL = 1500 -- ms; several times the pause between two looks of a follower
local TPM, CONCURRENT, MONTHLY_TOKENS, MONTHLY_COST, REQUESTS = 1, 2, 3, 4, 5

-- `month` 0: no ledgers; budgets are whole again at `month_ends`. `most` and `least` output, in multiples of `step`, at
-- so many whole nano-dollars a token and a rest in millionths. The end of a flight (key '': none) matters since a time.
local override, id, lease, attempt, month, month_ends = unpack(ARGV, 1, 6)
local prompt_tokens, prompt_cost, most, least, step, whole_price, rest_price = unpack(ARGV, 7, 13)
local draft, lazy_reaps, flight_key, flight_since, process = unpack(ARGV, 14, 18)
prompt_tokens, prompt_cost = tonumber(prompt_tokens), tonumber(prompt_cost)
most, least, step = tonumber(most), tonumber(least), tonumber(step)
whole_price, rest_price = tonumber(whole_price), tonumber(rest_price)
local now = clock(override)
local second = math.floor(now / 1000000)
local operation, flight = P .. 'o:' .. id, flight_key ~= '' and P .. 'y:' .. flight_key

if flight and redis.call('EXISTS', operation) == 0 then
  -- The end of one that this call waited for comes first, though another call may lead by now.
  local ended, error = string.match(redis.call('GET', flight .. ':ended') or '', '^(%d+) (.*)$')
  if ended and tonumber(ended) >= tonumber(flight_since) then
    return { 'flight', 0, error == '' and now or tonumber(ended), error }
  end
  local held_by, its_process = leader(flight)
  if held_by and redis.call('EXISTS', P .. 'p:' .. its_process) == 1 then
    redis.call('SET', flight .. ':awaited', 1, 'PX', AWAITED_TTL)
    return { 'flight', 1, now, '' }
  end
end

reap(now, tonumber(lazy_reaps))

local subjects = {}
for i = FIRST, #ARGV, WIDTH do
  local s = { number = #subjects + 1, name = ARGV[i], limits = {}, log = P .. ARGV[i] .. ':q' }
  s.ledger = month ~= NO_MONTH and P .. ARGV[i] .. ':m:' .. month
  for limit = TPM, REQUESTS do
    local value = tonumber(ARGV[i + limit])
    s.limits[limit] = value >= 0 and value or nil
  end
  s.w = window_load(P .. s.name .. ':w', second)
  subjects[s.number] = s
end

local function granted(leads, output, tokens, cost, lease_end)
  local reply = { 'ok', leads and 1 or 0, output, tokens, cost, now, lease_end }
  for _, s in ipairs(subjects) do
    reply[#reply + 1] = s.w.t + s.w.s
    reply[#reply + 1] = window_reset(s.w, now)
  end
  return reply
end

local held = redis.call('HMGET', operation, 'z', 'k', 't', 'c', 'u', 'g', 'f')
local held_tokens, held_cost, held_output = tonumber(held[3] or 0), tonumber(held[4] or 0), tonumber(held[5] or 0)
if held[1] and held[1] ~= 'o' then
  return { 'closed' }
end
local slot = held[1] and 0 or 1
local leads = held[7] and leader(P .. 'y:' .. held[7]) == id -- a further attempt keeps the flight that the call has
if held[1] and tonumber(attempt) <= tonumber(held[2]) then
  return granted(leads, tonumber(held[6]), held_tokens, held_cost, tonumber(redis.call('ZSCORE', P .. 'l', id)))
end

local missing = { 'missing' }
for _, s in ipairs(subjects) do
  local v = s.ledger and redis.call('HMGET', s.ledger, 'st', 'sc', 'rt', 'rc')
  if v and v[1] then
    s.reserved_tokens, s.reserved_cost = tonumber(v[3]), tonumber(v[4])
    s.month_tokens, s.month_cost = tonumber(v[1]) + s.reserved_tokens, tonumber(v[2]) + s.reserved_cost
  elseif v then
    missing[#missing + 1] = s.number
  end
end
if #missing > 1 then
  return missing
end

local function cost_of(output)
  return prompt_cost + output * whole_price + math.ceil(output * rest_price / 1000000)
end

local need_tokens, need_cost = prompt_tokens + least, cost_of(least)
local refused = { 'refused', now }
local function check(s, limit, used, need, reset)
  local most_allowed = s.limits[limit]
  if most_allowed and used + need > most_allowed then
    local impossible = need > most_allowed and 1 or 0
    for _, value in ipairs({ s.number, limit, used, reset(used + need - most_allowed), impossible }) do
      refused[#refused + 1] = value
    end
  end
end

for _, s in ipairs(subjects) do
  local function in_a_second() return now + 1000000 end
  local function next_month() return tonumber(month_ends) end
  if s.limits[REQUESTS] then
    s.at = math.max(now, log_latest(s.log, now))
    check(s, REQUESTS, log_length(s.log, s.at), 1, function(excess) return log_reset(s.log, excess, s.at) end)
  end
  check(s, TPM, s.w.t + s.w.s, need_tokens, function(excess) return tokens_reset(s.w, excess, now) end)
  check(s, CONCURRENT, s.w.n, slot, in_a_second)
  check(s, MONTHLY_TOKENS, s.month_tokens, need_tokens, next_month)
  if need_cost > 0 then -- what costs nothing is not stopped by a budget in money, however overspent
    check(s, MONTHLY_COST, s.month_cost, need_cost, next_month)
  end
end
if #refused > 2 then
  return refused
end

-- The least fits; grant as much more as does. Doubles estimate the affordable output, integers correct it.
local output = most
local function affordable(room)
  local price = whole_price + rest_price / 1000000
  local guess = price > 0 and math.min(most, math.floor((room - prompt_cost) / price)) or most
  while guess > least and cost_of(guess) > room do
    guess = guess - 1
  end
  while guess < most and cost_of(guess + 1) <= room do
    guess = guess + 1
  end
  return guess
end
for _, s in ipairs(subjects) do
  if s.limits[TPM] then
    output = math.min(output, s.limits[TPM] - s.w.t - s.w.s - prompt_tokens)
  end
  if s.limits[MONTHLY_TOKENS] then
    output = math.min(output, s.limits[MONTHLY_TOKENS] - s.month_tokens - prompt_tokens)
  end
  if s.limits[MONTHLY_COST] then
    output = math.min(output, affordable(math.max(need_cost, s.limits[MONTHLY_COST] - s.month_cost)))
  end
end
output = output - output % step

local tokens, cost = prompt_tokens + output, cost_of(output)
local names = {}
for _, s in ipairs(subjects) do
  s.w.n, s.w.t = s.w.n + slot, s.w.t + tokens
  window_save(s.w)
  if s.ledger then
    redis.call('HSET', s.ledger, 'rt', s.reserved_tokens + tokens, 'rc', s.reserved_cost + cost)
  end
  if s.limits[REQUESTS] then
    log_add(s.log, s.at)
  end
  names[s.number] = s.name
end
local lease_end = now + tonumber(lease)
redis.call('HSET', operation, 'z', 'o', 'k', attempt, 's', table.concat(names, ' '), 'm', month,
  't', held_tokens + tokens, 'c', held_cost + cost, 'u', held_output + output, 'g', output, 'd', draft)
redis.call('EXPIRE', operation, LONG_TTL)
redis.call('ZADD', P .. 'l', str(lease_end), id)
redis.call('EXPIRE', P .. 'l', LONG_TTL)

-- An answer that limits cut short is not shared.
if flight and slot == 1 and output == most then
  leads = true
  redis.call('SET', flight, id .. ' ' .. process, 'EX', LONG_TTL)
  redis.call('SET', P .. 'p:' .. process, 1, 'PX', HEARTBEAT_TTL)
  redis.call('HSET', operation, 'f', flight_key)
end
return granted(leads, output, held_tokens + tokens, held_cost + cost, lease_end)
