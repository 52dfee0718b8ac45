-- busiest: the aggregations with the most unfinished jobs.
--
-- KEYS    1 base of the shard
-- ARGV    1 how many at the most, 1 or more
-- from    any
-- to      the same
-- answer  {aggregations with work, downloads running, callbacks running, {aggregation, its score in
--         `groups`, limit, 1 if paused} per aggregation}
-- repeat  harmless

local out = {}
local rows = redis.call('ZRANGE', key_groups('download'), 0, tonumber(ARGV[1]) - 1, 'REV', 'WITHSCORES')
for i = 1, #rows, 2 do
  local record = redis.call('HMGET', key_group('download', rows[i]), 'limit', 'paused')
  out[#out + 1] = {rows[i], rows[i + 1], record[1] or '1', record[2] == '1' and 1 or 0}
end
return {
  redis.call('ZCARD', key_groups('download')),
  redis.call('ZCARD', key_leases('download')),
  redis.call('ZCARD', key_leases('callback')),
  out,
}
