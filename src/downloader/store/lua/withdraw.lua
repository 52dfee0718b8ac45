-- withdraw: an instance that leases nothing for now is not woken any more; another is, for what it was woken for.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, owner, types: see `_wake.lua`; absent: all}
-- from    any
-- to      the same
-- answer  1
-- repeat  harmless

local kind, types = call.kind, call.types or ALL_TYPES
redis.call('ZREM', key_idle(kind, types), call.owner)
resign(kind, types, call.owner)
local next_types = types_for_next(kind)
if next_types then wake_one(kind, next_types, '+inf') end
return 1
