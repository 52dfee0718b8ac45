-- report: an instance publishes its facts, and its counts are added to the fleet's.
--
-- KEYS    1 base of the shard
-- ARGV    1 {role, instance, facts: JSON, ttl_ms: after which it counts as gone, number: of these counts,
--         counted_ms: how long a number is remembered}, then per count {series, amount}
-- from    any
-- to      the same
-- answer  1
-- repeat  counts of the same number are not added again

redis.call('ZREMRANGEBYSCORE', key_instances(call.role), '-inf', now)
redis.call('SET', key_instance(call.role, call.instance), call.facts, 'PX', call.ttl_ms)
redis.call('ZADD', key_instances(call.role), now + call.ttl_ms, call.instance)
-- Another instance may report less often. A key without a time to live has PTTL -1.
if redis.call('PTTL', key_instances(call.role)) < call.ttl_ms then
  redis.call('PEXPIRE', key_instances(call.role), call.ttl_ms)
end

local counted = key_counted(call.role, call.instance)
if tonumber(redis.call('GET', counted) or '0') < call.number then
  redis.call('SET', counted, call.number, 'PX', call.counted_ms)
  for item in items() do redis.call('HINCRBY', key_totals(call.role), item.series, item.amount) end
end
return 1
