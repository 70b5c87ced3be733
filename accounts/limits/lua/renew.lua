-- Prolong the leases of open operations. ARGV: clock override, lease (µs), operations.
-- Answers a 1 for each that is still open, and a 0 for each that is not.
local lease_end = str(clock(ARGV[1]) + tonumber(ARGV[2]))
local reply = {}
for i = 3, #ARGV do
  local open = redis.call('ZSCORE', P .. 'l', ARGV[i])
  if open then
    redis.call('ZADD', P .. 'l', 'XX', lease_end, ARGV[i])
  end
  reply[#reply + 1] = open and 1 or 0
end
return reply
