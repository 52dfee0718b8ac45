-- cancel: downloads that are not over end because a client asked for it, and their callbacks become pending.
--
-- KEYS    1 base of the shard
-- ARGV    1 {error, keep_ms: how long a job without a callback is kept}, then per job {id, queue: its aggregation,
--         callback: its queue or '', limit: of that queue, token: of the job, absent: none,
--         counted: the token if the job counts against its quota, job_group: of the job, absent: none,
--         record: see `end_job`, of a job without a callback}
-- from    download pending | running
-- to      download cancelled, and callback pending where there is one
-- answer  per job: 'done' | 'unknown' | 'conflict'
-- repeat  'done' again, nothing changed
--
-- The download of a running job keeps its slot until the holder has stopped or the lease would have ended, because the
-- origin may still be sending until then.

-- Whether the record of a job that has ended is that of a cancelled one.
local function is_cancelled(ended)
  return string.find(ended, '\nDstate=cancelled', 1, true) ~= nil
end

local function cancel(item)
  local id, queue, keep_ms = item.id, item.queue, call.keep_ms
  if redis.call('EXISTS', key_job(id)) == 0 then
    local ended = redis.call('HGET', key_ended(), id)
    return ended and (is_cancelled(ended) and 'done' or 'conflict') or 'unknown'
  end

  local task = key_task('download', id)
  local state, held = unpack(task_fields('download', id, 'state', 'group'))
  state = state or 'pending'
  if state == 'cancelled' then return 'done' end

  if state == 'pending' then
    redis.call('ZREM', key_pending('download', queue), id)
    redis.call('ZREM', key_urgent(queue), id)
  elseif state == 'running' then
    -- A job that was damaged does not name its aggregation, and the slot must become free.
    queue = held or queue
    local ends = redis.call('ZSCORE', key_leases('download'), id) or now
    redis.call('ZREM', key_leases('download'), id)
    redis.call('ZADD', key_stopping(), ends, id .. ' ' .. queue)
    -- The holder needs the records to free the slot and to delete the file.
    item.record = nil
    keep_ms = math.max(keep_ms, 2 * (ends - now))
    -- `pcall`, because the writes must stand even if the store's user may not publish any more.
    redis.pcall('PUBLISH', key_wake('download'), id)
  else
    return 'conflict'
  end
  redis.call('HSET', task, 'state', 'cancelled', 'group', queue, 'finished', now, 'error', call.error,
    'code', 'cancelled', 'status', '0')
  redis.call('HDEL', task, 'due')
  remember('download', id, call.error)
  touch('download', queue)
  conclude(id, item, keep_ms)
  return 'done'
end

local answers = {}
for item in items() do answers[#answers + 1] = cancel(item) end
place_touched()
return answers
