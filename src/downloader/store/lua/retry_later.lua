-- retry_later: running tasks wait for another attempt; this one counts.
--
-- KEYS    1 base of the shard
-- ARGV    1 kind, 2 owner, then per lease: id, generation, delay in ms, error, code, status
-- from    running, this owner and generation
-- to      pending
-- answer  per lease: 'done' | 'lease_lost'
-- repeat  'done' again, nothing changed
--
-- A callback destination that fails is narrowed to one delivery at a time until one succeeds, so that
-- a dead host holds one slot of the notifier and not all of them.

local kind, owner = ARGV[1], ARGV[2]
local answers = {}
for i = 3, #ARGV, 6 do
  local id, generation, delay = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local whose, group = claim(kind, id, owner, generation)
  if whose == 'held' then
    leave(kind, id, group)
    requeue(kind, id, group, delay)
    local task = key_task(kind, id)
    redis.call('HSET', task, 'settled', generation,
      'error', ARGV[i + 3], 'code', ARGV[i + 4], 'status', ARGV[i + 5])
    redis.call('HINCRBY', task, 'attempts', 1)
    remember(kind, id, ARGV[i + 3])
    if kind == 'callback' then redis.call('HSET', key_group(kind, group), 'limit', 1) end
    touch(kind, group)
  end
  answers[#answers + 1] = whose == 'lost' and 'lease_lost' or 'done'
end
place_touched()
return answers
