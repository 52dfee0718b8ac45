-- sweep: tasks whose lease has ended become pending again; their holder died or lost its connection.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, count: how many at the most}
-- from    running, lease ended
-- to      pending, with one more crash
-- answer  ids
-- repeat  finds the next ones

local kind = call.kind
local ids = redis.call('ZRANGEBYSCORE', key_leases(kind), '-inf', now, 'LIMIT', 0, call.count)
for _, id in ipairs(ids) do
  local group = redis.call('HGET', key_task(kind, id), 'group')
  leave(kind, id, group)
  requeue(kind, id, group, 0)
  redis.call('HINCRBY', key_task(kind, id), 'crashes', 1)
  remember(kind, id, 'the worker died or lost its connection')
  touch(kind, group)
end
place_touched()
return ids
