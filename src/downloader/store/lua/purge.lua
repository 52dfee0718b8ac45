-- purge: a job that has ended is due to be deleted, with its file, before its time.
--
-- KEYS    1 base of the shard
-- ARGV    1 {}, then per job {id}
-- from    download terminal, callback terminal or none
-- to      the same, but no longer to be retried, and due for `reap`
-- answer  per job: 'done' | 'unknown' | 'conflict'
-- repeat  'done', changed nothing

local function purge(id)
  local ended = redis.call('HGET', key_ended(), id)
  if ended then
    if string.sub(ended, -2) ~= REAPING then redis.call('HSET', key_ended(), id, ended .. REAPING) end
    redis.call('ZADD', key_reap_ended(), now, id)
    return 'done'
  end
  if redis.call('EXISTS', key_job(id)) == 0 then return 'unknown' end
  if not redis.call('ZSCORE', key_reap(), id) then return 'conflict' end
  -- The holder of a cancelled download needs the records to delete a file that it stores meanwhile.
  local queue = task_fields('download', id, 'group')[1]
  if queue and redis.call('ZSCORE', key_stopping(), id .. ' ' .. queue) then return 'conflict' end
  redis.call('HSET', key_task('download', id), 'reaping', 1)
  redis.call('ZADD', key_reap(), now, id)
  redis.call('ZREM', key_failed(), id)
  return 'done'
end

local answers = {}
for item in items() do answers[#answers + 1] = purge(item.id) end
return answers
