-- Create missing ledgers with the amounts that the database has. The first writer wins.
-- ARGV: clock override, month, when (µs) the ledger may expire, then for each subject: name, tokens, cost.
local now = clock(ARGV[1])
for i = 4, #ARGV, 3 do
  local key = P .. ARGV[i] .. ':m:' .. ARGV[2]
  if redis.call('EXISTS', key) == 0 then
    redis.call('HSET', key, 'st', ARGV[i + 1], 'sc', ARGV[i + 2], 'rt', 0, 'rc', 0, 'at', str(now))
    redis.call('EXPIRE', key, math.max(LONG_TTL, math.ceil((tonumber(ARGV[3]) - now) / 1000000)))
  end
end
return 1
