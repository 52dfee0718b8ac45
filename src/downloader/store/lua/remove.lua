-- remove: reaped jobs are forgotten.
--
-- KEYS    1 base of the shard
-- ARGV    ids
-- from    given to a reaper
-- to      (no job)
-- answer  how many there were
-- repeat  0, nothing changed

local removed = 0
for _, id in ipairs(ARGV) do
  if redis.call('HGET', key_task('download', id), 'reaping') then
    redis.call('ZREM', key_reap(), id)
    removed = removed + redis.call('DEL', key_job(id))
    redis.call('DEL', key_task('download', id), key_task('callback', id))
  end
end
return removed
