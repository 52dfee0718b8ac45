-- renew: leases of running tasks are prolonged.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, owner, lease_ms}, then per lease {id, generation}
-- from    running, this owner and generation
-- to      the same
-- answer  per lease: 'done' | 'lease_lost' | 'cancelled'
-- repeat  harmless

local kind = call.kind
local answers = {}
for item in items() do
  local holder, queue, host = claim(kind, item.id, call.owner, item.generation)
  if holder == 'held' then
    redis.call('ZADD', key_leases(kind), now + call.lease_ms, item.id)
    prolong_visit(host, item.id)
  elseif holder == 'cancelled' then
    -- The work has not ended yet, so the slot is kept for the time of a lease.
    local member = item.id .. ' ' .. queue
    if redis.call('ZREM', key_stopping(), member) == 1 then
      redis.call('ZADD', key_stopping(), now + call.lease_ms, member)
      prolong_visit(host, item.id)
    end
  end
  -- A task that the holder has just settled is not lost: the answer to that call is on its way.
  answers[#answers + 1] = ANSWERS[holder]
end
return answers
