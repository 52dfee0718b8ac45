-- sweep: tasks whose lease has ended become pending again; their holder died or lost its connection.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, count: how many at the most}
-- from    running, lease ended; cancelled, lease ended
-- to      pending, with one more crash; cancelled, its slot free
-- answer  ids of those that are pending again
-- repeat  goes on with the next leases that have ended

local kind = call.kind
local ids = redis.call('ZRANGEBYSCORE', key_leases(kind), '-inf', now, 'LIMIT', 0, call.count)
for _, id in ipairs(ids) do
  local found = redis.call('HMGET', key_task(kind, id), 'group', 'host', 'generation')
  local group = found[1]
  leave(kind, id, group)
  leave_host(id, found[2])
  requeue(kind, id, group, 0)
  redis.call('HINCRBY', key_task(kind, id), 'crashes', 1)
  redis.call('HSET', key_task(kind, id), 'swept', found[3])
  remember(kind, id, 'the worker died or lost its connection')
  touch(kind, group)
end
-- Cancelled downloads whose holder has not reported that it stopped: it has stopped by the end of its lease. For
-- both kinds, as a processor of a version without `cancel` does not look for them.
for _, each in ipairs(redis.call('ZRANGE', key_stopping(), '-inf', now, 'BYSCORE', 'LIMIT', 0, call.count)) do
  free_cancelled(string.match(each, '^(%w+) (.*)$'))
end
place_touched()
return ids
