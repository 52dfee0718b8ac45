-- reap: finished jobs whose time is up are given to one reaper for a while.
--
-- KEYS    1 base of the shard
-- ARGV    1 how many at the most, 2 ms for which nobody else is given them
-- from    download terminal, callback terminal or none, kept long enough
-- to      the same, but no longer to be retried
-- answer  {ms until the next is due (-1: none), {id, spec, 1 if there may be a file} per job}
-- repeat  gives others; the first are given again after the hold

local out = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key_reap(), '-inf', now, 'LIMIT', 0, tonumber(ARGV[1]))) do
  local spec = redis.call('GET', key_job(id))
  if spec then
    -- Removed first, because a script that has written may go on when memory is exhausted; and who
    -- would free it, if not the reaper?
    redis.call('ZREM', key_reap(), id)
    redis.call('ZADD', key_reap(), now + tonumber(ARGV[2]), id)
    redis.call('HSET', key_task('download', id), 'reaping', 1)
    local task = redis.call('HMGET', key_task('download', id), 'state', 'deliveries', 'attempts')
    -- A run whose end we were never told of may have stored the file before it died.
    local unclear = tonumber(task[2] or '0') > tonumber(task[3] or '0')
    out[#out + 1] = {id, spec, (task[1] == 'succeeded' or unclear) and 1 or 0}
  else
    redis.call('ZREM', key_reap(), id)
  end
end
local first = redis.call('ZRANGE', key_reap(), 0, 0, 'WITHSCORES')
return {first[2] and math.max(0, tonumber(first[2]) - now) or -1, out}
