-- leave: an instance says that it goes, so that its counters and itself vanish at once.
--
-- KEYS    1 base of the shard
-- ARGV    1 role, 2 instance
-- from    any
-- to      the same
-- answer  1
-- repeat  harmless

redis.call('DEL', key_instance(ARGV[1], ARGV[2]))
redis.call('ZREM', key_instances(ARGV[1]), ARGV[2])
return 1
