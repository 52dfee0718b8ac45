-- leave: an instance stops, and its report is deleted.
--
-- KEYS    1 base of the shard
-- ARGV    1 {role, instance}
-- from    any
-- to      the same
-- answer  1
-- repeat  harmless

redis.call('DEL', key_instance(call.role, call.instance))
redis.call('ZREM', key_instances(call.role), call.instance)
return 1
