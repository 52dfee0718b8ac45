-- adjust: an operator changes an aggregation; the values hold until they are cleared, whatever its jobs ask for.
--
-- KEYS    1 base of the shard
-- ARGV    1 {group, limit, rate and delay: a value, '' to go back to what the jobs ask for, absent: unchanged,
--         paused: '1', '', absent: unchanged}
-- from    any
-- to      the same
-- answer  `describe_aggregation`; nothing for no such aggregation
-- repeat  harmless

local group = call.group
if not redis.call('ZSCORE', key_groups('download'), group) then return {} end

local record = key_group('download', group)
for _, name in ipairs(ADJUSTABLE) do
  local value, asked = call[name], 'asked_' .. name
  if value == '' then
    local theirs = redis.call('HGET', record, asked)
    if theirs == '' then redis.call('HDEL', record, name) elseif theirs then redis.call('HSET', record, name, theirs) end
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
touch('download', group)
place_touched()
return describe_aggregation(group)
