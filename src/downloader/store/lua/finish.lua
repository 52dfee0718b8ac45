-- finish: running downloads reach their terminal state, and their callbacks become pending.
--
-- KEYS    1 base of the shard
-- ARGV    1 owner, then per result: id, generation, state, 1 if the attempt counts, error, code, status,
--         size, sha256, mime, image, callback group or '', its limit, ms to keep a job without callback
-- from    download running, this owner and generation
-- to      download succeeded | failed | cancelled, and callback pending where there is one
-- answer  per result: 'done' | 'lease_lost'
-- repeat  'done' again, nothing changed

local owner = ARGV[1]
local answers = {}
for i = 2, #ARGV, 14 do
  local id, generation, state, counts = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local error, callback = ARGV[i + 4], ARGV[i + 11]
  local whose, group = claim('download', id, owner, generation)
  if whose == 'held' then
    leave('download', id, group)
    local task = key_task('download', id)
    redis.call('HSET', task, 'state', state, 'finished', now, 'settled', generation,
      'error', error, 'code', ARGV[i + 5], 'status', ARGV[i + 6], 'size', ARGV[i + 7],
      'sha256', ARGV[i + 8], 'mime', ARGV[i + 9], 'image', ARGV[i + 10])
    redis.call('HINCRBY', task, 'attempts', tonumber(counts))
    redis.call('HDEL', task, 'owner')
    if error ~= '' then remember('download', id, error) end
    touch('download', group)
    if callback ~= '' then
      redis.call('HSETNX', key_group('callback', callback), 'limit', ARGV[i + 12])
      redis.call('HSET', key_task('callback', id), 'state', 'pending', 'due', now, 'group', callback)
      redis.call('ZADD', key_queue('callback', callback), now, id)
      touch('callback', callback)
    else
      redis.call('ZADD', key_reap(), now + tonumber(ARGV[i + 13]), id)
    end
  end
  answers[#answers + 1] = whose == 'lost' and 'lease_lost' or 'done'
end
place_touched()
return answers
