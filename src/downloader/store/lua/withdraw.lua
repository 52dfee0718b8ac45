-- withdraw: an instance that leases nothing for now is not woken any more; another is, for what it was woken for.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, owner}
-- from    any
-- to      the same
-- answer  1
-- repeat  harmless

redis.call('ZREM', key_idle(call.kind), call.owner)
resign(call.kind, call.owner)
if can_run(call.kind) then wake_one(call.kind, '+inf') end
return 1
