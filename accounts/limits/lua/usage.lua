-- Return what subjects use now and have used in a month. ARGV: clock override, month, then for each subject: name and
-- '1' if its requests are counted. Returns {'ok', then for each subject: requests, tokens in the window, slots, settled
-- tokens and cost, reserved tokens and cost}, or {'missing', numbers of the subjects without a ledger}.
local now = clock(ARGV[1])
local second = math.floor(now / 1000000)
local reply, missing = { 'ok' }, { 'missing' }

for i = 3, #ARGV, 2 do
  local v = redis.call('HMGET', P .. ARGV[i] .. ':m:' .. ARGV[2], 'st', 'sc', 'rt', 'rc')
  if v[1] then
    local w = window_load(P .. ARGV[i] .. ':w', second)
    local counted = ARGV[i + 1] == '1' and log_length(P .. ARGV[i] .. ':q', now) or 0
    for _, value in ipairs({ counted, w.t + w.s, w.n, tonumber(v[1]), tonumber(v[2]), tonumber(v[3]), tonumber(v[4]) }) do
      reply[#reply + 1] = value
    end
  else
    missing[#missing + 1] = (i - 3) / 2 + 1
  end
end
return #missing > 1 and missing or reply
