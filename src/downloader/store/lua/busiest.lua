-- busiest: the aggregations with the most unfinished jobs.
--
-- KEYS    1 base of the shard
-- ARGV    1 {count: how many at the most, 1 or more, skip: how many busier ones are left out}
-- from    any
-- to      the same
-- answer  paused (1 if all aggregations are), total (aggregations with work), downloads and callbacks (running),
--         aggregations: name, score in `queues`, limit, paused ('1' or ''), cooling (until when, ms; '' if it is not)
--         and pace (starts per second; '' for none) of each
-- repeat  harmless

local last = call.skip + call.count - 1
local rows = redis.call('ZRANGE', key_queues('download'), call.skip, last, 'REV', 'WITHSCORES')
local aggregations = {}
for i = 1, #rows, 2 do
  local record = redis.call('HMGET', key_queue_record('download', rows[i]), 'limit', 'paused', unpack(GATE))
  local cools = tonumber(record[3] or '0') > now
  aggregations[#aggregations + 1] = {
    'name', rows[i], 'score', rows[i + 1], 'limit', record[1] or '1', 'paused', record[2] == '1' and '1' or '',
    'cooling', cools and record[3] or '', 'pace', pace_shown(unpack(record, 3)),
  }
end
return {
  'paused', redis.call('EXISTS', key_paused()), 'total', redis.call('ZCOUNT', key_queues('download'), '(0', '+inf'),
  'downloads', redis.call('ZCARD', key_leases('download')) + redis.call('ZCARD', key_stopping()),
  'callbacks', redis.call('ZCARD', key_leases('callback')),
  'aggregations', aggregations,
}
