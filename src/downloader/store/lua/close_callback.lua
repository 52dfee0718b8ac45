-- close_callback: running callbacks reach their terminal state; the job waits to be reaped.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, owner, rated: whether some destinations have a rate, absent: none}, then per result {id, generation,
--         state, error, keep_ms: how long the job is kept, limit: of the queue, slow: whether the destination took
--         long, absent: it did not, record: see `end_job`, for a success of the callback, if the download has succeeded
--         or was cancelled, job_group: of the job, absent: none}
-- from    callback running, this owner and generation
-- to      callback succeeded | failed
-- answer  per result: 'done' | 'lease_lost'
-- repeat  'done' again, nothing changed

local answers = {}
for item in items() do
  local holder, queue = claim('callback', item.id, call.owner, item.generation)
  if holder == 'held' then
    leave('callback', item.id, queue)
    -- An earlier version's `retry` did not remove the job.
    if item.state == 'succeeded' then redis.call('ZREM', key_failed(), item.id) end
    local task = key_task('callback', item.id)
    redis.call('HSET', task, 'state', item.state, 'finished', now, 'settled', settled_by(call.owner, item.generation),
      'error', item.error)
    add_to('callback', item.id, 'attempts', 1)
    redis.call('HDEL', task, 'owner')
    if item.error ~= '' then remember('callback', item.id, item.error) end
    if item.state == 'succeeded' then
      -- A success restores the limit, which a failure has set to 1.
      redis.call('HSET', key_queue_record('callback', queue), 'limit', item.limit)
    else
      redis.call('ZADD', key_failed(), now + item.keep_ms, item.id)
    end
    local download = task_fields('download', item.id, 'state', 'group')
    if item.job_group then leave_job_group(item.job_group, item.id, download[1]) end
    note_answer(queue, item.state == 'succeeded', item.slow)
    local stops = download[1] == 'cancelled' and
      redis.call('ZSCORE', key_stopping(), item.id .. ' ' .. (download[2] or ''))
    if item.record and (download[1] == 'succeeded' or download[1] == 'cancelled' and not stops) then
      end_job(item.id, item.record, item.keep_ms)
    else
      redis.call('ZADD', key_reap(), now + item.keep_ms, item.id)
    end
    touch('callback', queue)
  end
  answers[#answers + 1] = ANSWERS[holder]
end
place_touched()
return answers
