-- Count one request to something that all accounts share, take a slot and hold tokens there, or nothing of it.
-- KEYS[1] is the prefix of that thing alone. ARGV: 1 clock override, 2 operation, 3 lease (µs), 4 name of the subject,
-- 5 tokens to hold, 6 requests per minute, 7 tokens per minute, 8 concurrent requests (-1 is unlimited).
-- Answers {'ok'}, or {'refused', time, then of each refusal: number of the limit, used, reset, impossible}.

local AT_MOST = 64
local now = clock(ARGV[1])
local second = math.floor(now / 1000000)
local operation, name, tokens = P .. 'o:' .. ARGV[2], ARGV[4], tonumber(ARGV[5])
local requests, per_minute, slots = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

-- Whoever died without leaving may have used all that it held.
for _, expired in ipairs(redis.call('ZRANGEBYSCORE', P .. 'l', '-inf', str(now), 'LIMIT', 0, AT_MOST)) do
  local held = redis.call('GET', P .. 'o:' .. expired)
  if held then
    conclude(name, '', tonumber(held), 0, tonumber(held), 0, now)
    redis.call('DEL', P .. 'o:' .. expired)
  end
  redis.call('ZREM', P .. 'l', expired)
end
if redis.call('EXISTS', operation) == 1 then
  return { 'ok' }
end

local log, w = P .. name .. ':q', window_load(P .. name .. ':w', second)
local refused = { 'refused', now }
local function check(number, limit, used, need, reset)
  if limit >= 0 and used + need > limit then
    for _, value in ipairs({ number, used, reset(used + need - limit), need > limit and 1 or 0 }) do
      refused[#refused + 1] = value
    end
  end
end
if requests >= 0 then
  local last = tonumber(redis.call('LINDEX', log, -1) or 0)
  if last > now + MINUTE then -- written before the clock was set back: see admit.lua
    redis.call('DEL', log)
  else
    now = math.max(now, last)
  end
  local used = log_length(log, now)
  check(1, requests, used, 1, function() return tonumber(redis.call('LINDEX', log, used - requests)) + MINUTE end)
end
check(2, per_minute, w.t + w.s, tokens, function(excess) return tokens_reset(w, excess, now) end)
check(3, slots, w.n, 1, function() return now + 1000000 end)
if #refused > 2 then
  return refused
end

if requests >= 0 then
  redis.call('RPUSH', log, str(now))
  redis.call('EXPIRE', log, WINDOW_TTL)
end
w.n, w.t = w.n + 1, w.t + tokens
window_save(w)
redis.call('SET', operation, str(tokens), 'EX', LONG_TTL)
redis.call('ZADD', P .. 'l', str(now + tonumber(ARGV[3])), ARGV[2])
redis.call('EXPIRE', P .. 'l', LONG_TTL)
return { 'ok' }
