-- Give a slot back and replace the tokens that it held by those that were used; nothing if its lease has run out.
-- KEYS[1] and ARGV as in enter.lua: 1 clock override, 2 operation, 3 name of the subject, 4 tokens used.
local held = redis.call('GET', P .. 'o:' .. ARGV[2])
if held then
  conclude(ARGV[3], '', tonumber(held), 0, tonumber(ARGV[4]), 0, clock(ARGV[1]))
  redis.call('DEL', P .. 'o:' .. ARGV[2])
  redis.call('ZREM', P .. 'l', ARGV[2])
end
return 1
