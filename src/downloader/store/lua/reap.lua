-- reap: finished jobs that are due for deletion are given to one reaper for a while.
--
-- KEYS    1 base of the shard
-- ARGV    1 {count: how many at the most, hold_ms: how long no other call gets them}
-- from    download terminal, callback terminal or none, kept long enough
-- to      the same, but no longer to be retried
-- answer  due_ms: ms until the next is due (-1: none), jobs: id, spec, file ('1' if there may be one) and digests (of
--         shared files) of each, or id and ended: its record, job_groups: names of those that are due to be looked at,
--         see `tend`
-- repeat  other jobs; the same ones are given again after the hold

-- Bounded, because a million jobs may have expired at once.
local expired = redis.call('ZRANGE', key_failed(), '-inf', now, 'BYSCORE', 'LIMIT', 0, 1000)
if #expired > 0 then redis.call('ZREM', key_failed(), unpack(expired)) end
local jobs = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key_reap(), '-inf', now, 'LIMIT', 0, call.count)) do
  local spec = stored_job(id)
  if spec then
    redis.call('ZADD', key_reap(), now + call.hold_ms, id)
    local task = task_fields('download', id, 'state', 'deliveries', 'attempts', 'digests')
    redis.call('HSET', key_task('download', id), 'reaping', 1)
    -- An attempt without a reported end may have stored the file.
    local unclear = (tonumber(task[2] or nil) or 0) > (tonumber(task[3] or nil) or 0)
    local file = (task[1] == 'succeeded' or unclear) and '1' or ''
    jobs[#jobs + 1] = {'id', id, 'spec', spec, 'file', file, 'digests', task[4] or ''}
  else
    -- The job was evicted or deleted by hand.
    redis.call('ZREM', key_failed_downloads(), id)
    redis.call('DEL', key_task('download', id), key_task('callback', id))
    redis.call('ZREM', key_reap(), id)
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key_reap_ended(), '-inf', now, 'LIMIT', 0, call.count - #jobs)) do
  local ended = redis.call('HGET', key_ended(), id)
  if ended then
    redis.call('ZADD', key_reap_ended(), now + call.hold_ms, id)
    if string.sub(ended, -2) ~= REAPING then redis.call('HSET', key_ended(), id, ended .. REAPING) end
    jobs[#jobs + 1] = {'id', id, 'ended', ended}
  else
    redis.call('ZREM', key_reap_ended(), id)
  end
end
local due_ms = -1
for _, key in ipairs({key_reap(), key_reap_ended(), key_job_groups()}) do
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
  local wait = first and math.max(0, tonumber(first) - now)
  if wait and (due_ms < 0 or wait < due_ms) then due_ms = wait end
end
local job_groups = redis.call('ZRANGEBYSCORE', key_job_groups(), '-inf', now, 'LIMIT', 0, 100)
return {'due_ms', due_ms, 'jobs', jobs, 'job_groups', job_groups}
