-- Answer how many bytes may still be taken until a share of maxmemory is in use (any number where there is none), and
-- whether this Redis makes room by itself.
local function room(share)
  local told = redis.call('INFO', 'memory')
  local most = tonumber(string.match(told, '\nmaxmemory:(%d+)') or 0)
  if most == 0 then
    return math.huge, false
  end
  local used = tonumber(string.match(told, '\nused_memory:(%d+)'))
  return most * share - used, string.match(told, '\nmaxmemory_policy:allkeys') ~= nil
end

