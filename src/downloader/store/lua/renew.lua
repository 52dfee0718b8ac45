-- renew: running tasks stay with their holder for another lease.
--
-- KEYS    1 base of the shard
-- ARGV    1 kind, 2 owner, 3 lease in ms, then per lease: id, generation
-- from    running, this owner and generation
-- to      the same
-- answer  ids of leases that are lost
-- repeat  harmless

local kind, owner, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lost = {}
for i = 4, #ARGV, 2 do
  local id = ARGV[i]
  local whose = claim(kind, id, owner, ARGV[i + 1])
  if whose == 'held' then
    -- Removed first, because a script that has written may go on when memory is exhausted.
    redis.call('ZREM', key_leases(kind), id)
    redis.call('ZADD', key_leases(kind), now + lease_ms, id)
  elseif whose == 'lost' then
    -- One that this holder has just settled is not lost: it has yet to hear our answer.
    lost[#lost + 1] = id
  end
end
return lost
