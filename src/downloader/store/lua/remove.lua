-- remove: reaped jobs are deleted.
--
-- KEYS    1 base of the shard
-- ARGV    1 {}, then per job {id}
-- from    given to a reaper
-- to      (no job)
-- answer  how many there were
-- repeat  0, nothing changed

local removed = 0
for item in items() do
  local id = item.id
  -- A job that `reap` has not given may have been retried since.
  if redis.call('HGET', key_task('download', id), 'reaping') then
    redis.call('ZREM', key_reap(), id)
    redis.call('ZREM', key_failures(), id)
    removed = removed + redis.call('DEL', key_job(id))
    redis.call('DEL', key_task('download', id), key_task('callback', id))
  end
end
return removed
