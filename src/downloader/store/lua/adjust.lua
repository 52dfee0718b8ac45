-- adjust: an operator changes an aggregation; the values hold until they are cleared, whatever its jobs ask for.
--
-- KEYS    1 base of the shard
-- ARGV    1 {queue, limit, rate and delay: a value, '' to go back to what the jobs ask for, absent: unchanged,
--         paused: '1', '', absent: unchanged, cooling: '' to end a cooldown and the pace after it, absent: unchanged}
-- from    any
-- to      the same
-- answer  `describe_aggregation`; nothing for an aggregation without work for which nothing is set
-- repeat  harmless

local queue = call.queue
local record = key_queue_record('download', queue)
if not redis.call('ZSCORE', key_queues('download'), queue) then
  local sets = (call.paused or '') .. (call.limit or '') .. (call.rate or '') .. (call.delay or '')
  if sets == '' then return {} end
end
-- The record of an aggregation without work may still have a cooldown and the last start, which expire.
redis.call('PERSIST', record)
redis.call('ZADD', key_queues('download'), 'NX', 0, queue)
for _, name in ipairs(ADJUSTABLE) do
  local value, asked = call[name], 'asked_' .. name
  if value == '' then
    local theirs = redis.call('HGET', record, asked)
    if theirs == '' then
      redis.call('HDEL', record, name)
    elseif theirs then
      redis.call('HSET', record, name, theirs)
    end
    redis.call('HDEL', record, asked)
  elseif value then
    redis.call('HSETNX', record, asked, redis.call('HGET', record, name) or '')
    redis.call('HSET', record, name, value)
  end
end
if call.paused == '' then
  redis.call('HDEL', record, 'paused')
elseif call.paused then
  redis.call('HSET', record, 'paused', call.paused)
end
if call.cooling then redis.call('HDEL', record, 'cooling', 'cooled', 'cooldowns', 'why', 'pace') end
local answer = describe_aggregation(queue)
touch('download', queue)
place_touched()
return answer
