-- remove: reaped jobs are deleted.
--
-- KEYS    1 base of the shard
-- ARGV    1 {}, then per job {id}
-- from    given to a reaper
-- to      (no job)
-- answer  per job: 1, or 0 if there was none or it may stay
-- repeat  0, nothing changed

local answers = {}
for item in items() do
  local id, removed = item.id, 0
  -- A job without the mark of `reap` may have been retried since.
  if redis.call('HGET', key_task('download', id), 'reaping') then
    redis.call('ZREM', key_reap(), id)
    redis.call('ZREM', key_failed_downloads(), id)
    removed = redis.call('DEL', key_job(id))
    redis.call('DEL', key_task('download', id), key_task('callback', id))
  elseif string.sub(redis.call('HGET', key_ended(), id) or '', -2) == REAPING then
    redis.call('ZREM', key_reap_ended(), id)
    removed = redis.call('HDEL', key_ended(), id)
  end
  answers[#answers + 1] = removed
end
return answers
