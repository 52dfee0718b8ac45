-- remove: a reaped job is forgotten.
--
-- KEYS    1 base of the shard
-- ARGV    1 id
-- from    given to a reaper
-- to      (no job)
-- answer  1 if it was there
-- repeat  0, nothing changed

local id = ARGV[1]
if not redis.call('HGET', key_task('download', id), 'reaping') then return 0 end
redis.call('ZREM', key_reap(), id)
return redis.call('DEL', key_job(id), key_task('download', id), key_task('callback', id)) > 0 and 1 or 0
