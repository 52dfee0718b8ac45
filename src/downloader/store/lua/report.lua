-- report: an instance says that it lives, and its counters.
--
-- KEYS    1 base of the shard
-- ARGV    1 role, 2 instance, 3 facts as JSON, 4 ms after which it counts as gone
-- from    any
-- to      the same
-- answer  1
-- repeat  harmless

local ttl = tonumber(ARGV[4])
-- First of all writes, because it is allowed when memory is exhausted: whoever looks then wants to see us.
redis.call('ZREMRANGEBYSCORE', key_instances(ARGV[1]), '-inf', now - ttl)
redis.call('SET', key_instance(ARGV[1], ARGV[2]), ARGV[3], 'PX', ttl)
redis.call('ZADD', key_instances(ARGV[1]), now, ARGV[2])
redis.call('PEXPIRE', key_instances(ARGV[1]), ttl)
return 1
