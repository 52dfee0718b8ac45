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
-- The last answer of each destination that was noted. A batch often has many equal ones.
local noted = {}

local function note(queue, item)
  local answer = item.state .. ' ' .. item.limit .. (item.slow and ' slow' or '')
  if noted[queue] == answer then return end
  noted[queue] = answer
  -- A success restores the limit, which a failure has set to 1.
  if item.state == 'succeeded' then redis.call('HSET', key_queue_record('callback', queue), 'limit', item.limit) end
  note_answer(queue, item.state == 'succeeded', item.slow)
end

for item in items() do
  local id = item.id
  local holder, queue = claim('callback', id, call.owner, item.generation)
  if holder == 'held' then
    leave('callback', id, queue)
    -- An earlier version's `retry` did not remove the job.
    if item.state == 'succeeded' then redis.call('ZREM', key_failed(), id) end
    if item.error ~= '' then remember('callback', id, item.error) end
    if item.state ~= 'succeeded' then redis.call('ZADD', key_failed(), now + item.keep_ms, id) end
    local download, callback = all_fields('download', id), all_fields('callback', id)
    if item.job_group then leave_job_group(item.job_group, id, download.state) end
    note(queue, item)
    callback.state, callback.finished, callback.error = item.state, string.format('%.0f', now), item.error
    callback.settled = settled_by(call.owner, item.generation)
    callback.attempts = string.format('%.0f', sum_of(callback.attempts, 1))
    local stops = download.state == 'cancelled' and
      redis.call('ZSCORE', key_stopping(), id .. ' ' .. (download.group or ''))
    if item.record and (download.state == 'succeeded' or download.state == 'cancelled' and not stops) then
      end_job(id, item.record, item.keep_ms, {download = download, callback = callback})
    else
      local task = key_task('callback', id)
      redis.call('HSET', task, 'state', callback.state, 'finished', now, 'settled', callback.settled,
        'error', item.error, 'attempts', callback.attempts)
      redis.call('HDEL', task, 'owner')
      redis.call('ZADD', key_reap(), now + item.keep_ms, id)
    end
    touch('callback', queue)
  end
  answers[#answers + 1] = ANSWERS[holder]
end
place_touched()
return answers
