-- Return the amounts of ledgers, and what the shard's open operations hold on them, all read atomically.
-- ARGV: clock override, month, then names of subjects. Returns for each subject: settled tokens and cost, reserved
-- tokens and cost, tokens and cost that open operations hold, when (µs) it was seeded; empty if the ledger is missing.
local month = ARGV[2]
local tokens, cost = {}, {}
for i = 3, #ARGV do
  tokens[ARGV[i]], cost[ARGV[i]] = 0, 0
end

for _, operation in ipairs(redis.call('ZRANGE', P .. 'l', 0, -1)) do
  local v = redis.call('HMGET', P .. 'o:' .. operation, 'z', 's', 'm', 't', 'c')
  if v[1] == 'o' and v[3] == month then
    for name in string.gmatch(v[2], '%S+') do
      if tokens[name] then
        tokens[name], cost[name] = tokens[name] + tonumber(v[4]), cost[name] + tonumber(v[5])
      end
    end
  end
end

local reply = {}
for i = 3, #ARGV do
  local name, numbers = ARGV[i], {}
  local v = redis.call('HMGET', P .. name .. ':m:' .. month, 'st', 'sc', 'rt', 'rc', 'at')
  if v[1] then
    numbers = { tonumber(v[1]), tonumber(v[2]), tonumber(v[3]), tonumber(v[4]), tokens[name], cost[name], tonumber(v[5]) }
  end
  reply[#reply + 1] = numbers
end
return reply
