-- retry: failed callbacks are sent again, or failed downloads run again from the start.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind: what is run again, request, limit: of a callback's queue, limits: of queues of a type}, then per job
--         {id}
-- from    callback failed; or download failed, callback terminal or none, and no other proxy in between
-- to      callback pending; or download pending and callback none
-- answer  per job: 'done' | 'unknown' | 'conflict'
-- repeat  the same request is answered 'done' and changes nothing

local kind = call.kind

local function retry(id)
  local spec = stored_job(id)
  if not spec then return redis.call('HEXISTS', key_ended(), id) == 1 and 'conflict' or 'unknown' end

  local task = key_task(kind, id)
  local job = decoded(spec)
  local state, queue, retried = unpack(task_fields(kind, id, 'state', 'group', 'retried'))
  if retried == call.request then return 'done' end
  if task_fields('download', id, 'reaping')[1] then return 'conflict' end
  if state ~= 'failed' or not queue or not job.aggr_limit then return 'conflict' end

  if kind == 'download' then
    local callback, generation = unpack(task_fields('callback', id, 'state', 'generation'))
    if callback == 'pending' or callback == 'running' then return 'conflict' end
    local record = key_queue_record(kind, queue)
    -- Only with the proxy with which the job was accepted, because the client may not be permitted to use another one.
    local proxy = redis.call('HGET', task, 'proxy') or job.aggr_proxy or ''
    local other = redis.call('HGET', record, 'proxy')
    if (other or '') ~= '' and other ~= proxy then return 'conflict' end
    -- The next callback continues the generations, so that a late holder of this one cannot settle it.
    redis.call('DEL', key_task('callback', id))
    if generation then redis.call('HSET', key_task('callback', id), 'generation', generation) end
    -- An aggregation without jobs takes the values of this one, unless an operator has set a value.
    local values = {limit = job.aggr_limit, rate = job.aggr_rate, delay = job.aggr_delay}
    local fields = redis.call('HMGET', record, 'limit', 'asked_limit', 'asked_rate', 'asked_delay')
    if (fields[2] or fields[1] or '') == '' then
      for i, name in ipairs(ADJUSTABLE) do
        if values[name] then redis.call('HSET', record, fields[i + 1] and 'asked_' .. name or name, values[name]) end
      end
    end
    redis.call('HSETNX', record, 'proxy', proxy)
    if job.token then belong(record, job.token, job.counted) end
    if job.counted then count_job(id, job.token) end
    redis.call('PERSIST', record)
    redis.call('ZREM', key_failed_downloads(), id)
  end

  -- The job counts as unfinished again. A complete group does not change: `counted_as` is the state by which the group
  -- counts the job, for a retry after the group was reopened.
  local of_group = job.group and key_job_group(job.group)
  if of_group and redis.call('EXISTS', of_group) == 1 then
    local counted, before = unpack(task_fields('download', id, 'state', 'counted_as'))
    counted = before or counted
    if counted ~= 'succeeded' and counted ~= 'cancelled' then counted = 'failed' end
    if redis.pcall('HGET', of_group, 'completed') then
      redis.call('HSET', key_task('download', id), 'counted_as', counted)
    elseif redis.pcall('ZADD', key_members(job.group), 'NX', now, id) == 1 then
      redis.call('HDEL', key_task('download', id), 'counted_as')
      redis.pcall('HINCRBY', of_group, counted, -1)
      redis.pcall('HINCRBY', of_group, 'retried', 1)
    end
  end
  redis.call('ZREM', key_reap(), id)
  redis.call('ZREM', key_failed(), id)
  if kind == 'callback' then
    redis.call('HSET', task, 'since', now)
    if job.token then redis.call('HSETNX', key_queue_record(kind, queue), 'token', job.token) end
    local limit = call.limits[queue] or call.limits[string.match(queue, '^%S*')] or call.limit
    redis.call('HSETNX', key_queue_record(kind, queue), 'limit', limit)
  end
  redis.call('HDEL', task, 'finished', 'error', 'code', 'status', 'attempts', 'crashes', 'swept', 'throttled',
    'phases')
  redis.call('HSET', task, 'retried', call.request)
  requeue(kind, id, queue, now)
  touch(kind, queue)
  return 'done'
end

local answers = {}
for item in items() do answers[#answers + 1] = retry(item.id) end
place_touched()
return answers
