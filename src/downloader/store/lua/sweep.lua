-- sweep: tasks whose lease has ended become pending again; their holder died or lost its connection.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, count: how many at the most, lease_ms: the longest that a lease lasts; absent: not known}
-- from    running, lease ended; cancelled, lease ended
-- to      pending, with one more crash; cancelled, its slot free
-- answer  ids of those that are pending again
-- repeat  goes on with the next leases that have ended

local kind = call.kind
local ids = redis.call('ZRANGEBYSCORE', key_leases(kind), '-inf', now, 'LIMIT', 0, call.count)
if call.lease_ms then
  -- Leases from before the server's clock was set back.
  local from = '(' .. string.format('%.0f', now + 2 * call.lease_ms)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key_leases(kind), from, '+inf', 'LIMIT', 0, call.count - #ids)) do
    ids[#ids + 1] = id
  end
end
-- How many queues are examined for the slot of a task without a record.
local EXAMINED = 1000

-- The queue of a running task whose record was evicted, deleted or overwritten; nil if it is not found.
local function queue_with(id)
  local queues = redis.call('ZRANGE', key_queues(kind), 0, EXAMINED - 1, 'REV')
  queues[#queues + 1] = decoded(stored_job(id)).aggr_id
  for _, queue in ipairs(queues) do
    if redis.call('SISMEMBER', key_running(kind, queue), id) == 1 then return queue end
  end
end

local swept = {}
for _, id in ipairs(ids) do
  local task = task_fields(kind, id, 'group', 'host', 'generation')
  local queue = task[1] or queue_with(id)
  if queue then
    leave(kind, id, queue)
    leave_host(id, queue, task[2])
    local crashes = add_to(kind, id, 'crashes', 1)
    -- A suspect goes to the end of the queue, so that the next worker does not die at once.
    requeue(kind, id, queue, crashes < SUSPECT_CRASHES and place_of(kind, id) or now)
    redis.call('HSET', key_task(kind, id), 'group', queue, 'swept', task[3] or '')
    remember(kind, id, 'the worker died or lost its connection')
    touch(kind, queue)
    swept[#swept + 1] = id
  else
    redis.call('ZREM', key_leases(kind), id)
  end
end
-- Cancelled downloads that the holder has not settled: by the end of the lease the work has stopped. Done for both
-- kinds, because a processor of an earlier version does not look for cancelled downloads.
for _, each in ipairs(redis.call('ZRANGE', key_stopping(), '-inf', now, 'BYSCORE', 'LIMIT', 0, call.count)) do
  free_cancelled(string.match(each, '^(%w+) (.*)$'))
end
place_touched()
return swept
