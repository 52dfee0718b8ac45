-- aggregations: some of the aggregations that have work, or those with certain names.
--
-- KEYS    1 base of the shard
-- ARGV    1 {queues: those that are asked for, or cursor: from the last answer, '0' at first, and count: about
--         how many}
-- from    any
-- to      the same
-- answer  cursor: '0' at the end, aggregations: `describe_aggregation` of each
-- repeat  harmless

if call.queues then
  local rows = {}
  for _, queue in ipairs(call.queues) do rows[#rows + 1] = describe_aggregation(queue) end
  return {'cursor', '0', 'aggregations', rows}
end
-- ZSCAN returns each member that stays during the whole scan, even if others are added or removed meanwhile.
local answer = redis.call('ZSCAN', key_queues('download'), call.cursor, 'COUNT', call.count)
local rows = {}
for i = 1, #answer[2], 2 do
  rows[#rows + 1] = describe_aggregation(answer[2][i])
end
return {'cursor', answer[1], 'aggregations', rows}
