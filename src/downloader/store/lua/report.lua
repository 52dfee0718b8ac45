-- report: an instance publishes its facts and counters.
--
-- KEYS    1 base of the shard
-- ARGV    1 {role, instance, facts: JSON, ttl_ms: after which it counts as gone}
-- from    any
-- to      the same
-- answer  1
-- repeat  harmless

-- This comes before all other writes, which the server refuses when its memory is exhausted.
redis.call('ZREMRANGEBYSCORE', key_instances(call.role), '-inf', now - call.ttl_ms)
redis.call('SET', key_instance(call.role, call.instance), call.facts, 'PX', call.ttl_ms)
redis.call('ZADD', key_instances(call.role), now, call.instance)
redis.call('PEXPIRE', key_instances(call.role), call.ttl_ms)
return 1
