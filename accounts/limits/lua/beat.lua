-- Show that a process lives. ARGV: clock override, process, then the key and the operation of each of its flights.
-- Returns for each 1 if the operation still leads the flight, else 0.
redis.call('SET', P .. 'p:' .. ARGV[2], 1, 'PX', HEARTBEAT_TTL)
local reply = {}
for i = 3, #ARGV, 2 do
  reply[#reply + 1] = leader(P .. 'y:' .. ARGV[i]) == ARGV[i + 1] and 1 or 0
end
return reply
