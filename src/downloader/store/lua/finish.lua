-- finish: running downloads reach their terminal state, and their callbacks become pending.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, owner, own: see `is_own_next`, absent: none}, then per result {id, generation, state, attempts: '1'
--         if it counts, else '0', error, code, status, size, sha256, mime, image, more: names and values of further
--         fields, absent if there are none, callback: its queue or '', limit: of that queue, token: of the job, absent:
--         none, counted: the token if the job counts against its quota, keep_ms: how long a job without a callback is
--         kept, record: see `end_job`, for a success without callback, job_group: of the job, absent: none, phases: of
--         the attempt, absent: not kept, and what `cool_down` needs}
-- from    download running, this owner and generation
-- to      download succeeded | failed, and callback pending where there is one
-- answer  per result: 'done' | 'lease_lost' | 'cancelled'
-- repeat  'done' again, nothing changed

local answers = {}
for item in items() do
  local id = item.id
  local holder, queue, host, attempts = claim('download', id, call.owner, item.generation)
  if holder == 'held' then
    leave('download', id, queue)
    local task = key_task('download', id)
    redis.call('HSET', task, 'state', item.state, 'finished', now, 'settled', settled_by(call.owner, item.generation),
      'error', item.error, 'code', item.code, 'status', item.status, 'size', item.size,
      'sha256', item.sha256, 'mime', item.mime, 'image', item.image,
      'attempts', sum_of(attempts, item.attempts), unpack(item.more or {}))
    cool_down(id, queue, host, item)
    leave_host(id, queue, host)
    redis.call('HDEL', task, 'owner', 'due', 'phases')
    if item.phases then redis.call('HSET', task, 'phases', item.phases) end
    if item.error ~= '' then remember('download', id, item.error) end
    if item.state == 'failed' then redis.call('ZADD', key_failed_downloads(), now, id) end
    touch('download', queue)
    conclude(id, item, item.keep_ms)
  elseif holder == 'cancelled' then
    free_cancelled(id, queue)
  end
  answers[#answers + 1] = ANSWERS[holder]
end
place_touched()
return answers
