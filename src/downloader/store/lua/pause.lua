-- pause: an operator pauses all aggregations, or ends that pause.
--
-- KEYS    1 base of the shard
-- ARGV    1 {paused: '1' or ''}
-- from    any
-- to      the same
-- answer  1
-- repeat  harmless

if call.paused == '1' then
  redis.call('SET', key_paused(), '1')
else
  redis.call('DEL', key_paused())
  redis.pcall('PUBLISH', key_wake('download'), '')
end
return 1
