-- release: running tasks are handed back; the attempt does not count.
--
-- KEYS    1 base of the shard
-- ARGV    1 kind, 2 owner, then per lease: id, generation, reason or '', delay in ms
-- from    running, this owner and generation
-- to      pending
-- answer  per lease: 'done' | 'lease_lost'
-- repeat  'done' again, nothing changed

local kind, owner = ARGV[1], ARGV[2]
local answers = {}
for i = 3, #ARGV, 4 do
  local id, generation, reason, delay = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
  local whose, group = claim(kind, id, owner, generation)
  if whose == 'held' then
    leave(kind, id, group)
    requeue(kind, id, group, delay)
    redis.call('HSET', key_task(kind, id), 'settled', generation)
    if reason ~= '' then remember(kind, id, reason) end
    touch(kind, group)
  end
  answers[#answers + 1] = whose == 'lost' and 'lease_lost' or 'done'
end
place_touched()
return answers
