-- close_callback: running callbacks reach their terminal state; the job waits to be reaped.
--
-- KEYS    1 base of the shard
-- ARGV    1 owner, then per result: id, generation, state, error, ms to keep the job, limit of the group
-- from    callback running, this owner and generation
-- to      callback succeeded | failed
-- answer  per result: 'done' | 'lease_lost'
-- repeat  'done' again, nothing changed

local owner = ARGV[1]
local answers = {}
for i = 2, #ARGV, 6 do
  local id, generation, state, error = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local whose, group = claim('callback', id, owner, generation)
  if whose == 'held' then
    leave('callback', id, group)
    local task = key_task('callback', id)
    redis.call('HSET', task, 'state', state, 'finished', now, 'settled', generation, 'error', error)
    redis.call('HINCRBY', task, 'attempts', 1)
    redis.call('HDEL', task, 'owner')
    if error ~= '' then remember('callback', id, error) end
    -- It answered: a destination that was narrowed after a failure is trusted again.
    if state == 'succeeded' then redis.call('HSET', key_group('callback', group), 'limit', ARGV[i + 5]) end
    redis.call('ZADD', key_reap(), now + tonumber(ARGV[i + 4]), id)
    touch('callback', group)
  end
  answers[#answers + 1] = whose == 'lost' and 'lease_lost' or 'done'
end
place_touched()
return answers
