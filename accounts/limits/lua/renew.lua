-- Extend the leases of open operations. ARGV: clock override, lease (µs), operations.
-- Returns for each 1 if it is still open, else 0.
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
