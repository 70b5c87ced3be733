-- Count one request against the request rates of all subjects, or of none.
-- ARGV: clock override, operation, '1' to count or '0' to peek, then for each subject: name, requests per minute and
-- tokens per minute (-1 is unlimited).
-- Returns {admitted, time, then for each subject: requests used, their reset, tokens used, their reset}.

local FIRST = 4
local MARK_TTL = 120000
local now = clock(ARGV[1])
local marker = P .. 'a:' .. ARGV[2]
local counting = ARGV[3] == '1'

-- Keep the time from running backward.
local latest = {}
for i = FIRST, #ARGV, 3 do
  if ARGV[i + 1] ~= '-1' then
    latest[i] = log_latest(P .. ARGV[i] .. ':q', now)
  end
end
for _, last in pairs(latest) do
  now = math.max(now, last)
end

local used, reset = {}, {}
local fits = true
for i, last in pairs(latest) do
  local key, limit = P .. ARGV[i] .. ':q', tonumber(ARGV[i + 1])
  if last + MINUTE <= now then
    if last > 0 then
      redis.call('UNLINK', key)
    end
    used[i], reset[i] = 0, now
  else
    used[i], reset[i] = log_length(key, now), last + MINUTE
  end
  if used[i] >= limit then
    fits = false
    reset[i] = log_reset(key, used[i] - limit + 1, now)
  end
end

local admitted, at = fits and 1 or 0, now
if counting then
  local known
  if fits then
    if not redis.call('SET', marker, str(now), 'PX', MARK_TTL, 'NX') then
      known = redis.call('GET', marker)
    end
  else
    known = redis.call('GET', marker)
  end
  if known then
    admitted, at = 1, tonumber(known)
  elseif fits then
    for i in pairs(latest) do
      log_add(P .. ARGV[i] .. ':q', now)
      used[i], reset[i] = used[i] + 1, now + MINUTE
    end
  end
end

local reply = { admitted, at }
local second = math.floor(now / 1000000)
for i = FIRST, #ARGV, 3 do
  local tokens, whole = 0, now
  if ARGV[i + 2] ~= '-1' then
    local w = window_load(P .. ARGV[i] .. ':w', second)
    tokens, whole = w.t + w.s, window_reset(w, now)
  end
  for _, value in ipairs({ used[i] or 0, reset[i] or now, tokens, whole }) do
    reply[#reply + 1] = value
  end
end
return reply
