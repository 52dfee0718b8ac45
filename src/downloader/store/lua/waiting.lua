-- waiting: how many groups have due tasks and a free slot; asked by an instance whose own slots are all taken.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, without: groups that do not count}
-- from    any
-- to      the same
-- answer  their number
-- repeat  harmless

local ready, timers = key_ready(call.kind), key_timers(call.kind)
local count = redis.call('ZCARD', ready) + redis.call('ZCOUNT', timers, '-inf', now)
for _, group in ipairs(call.without) do
  local due = redis.call('ZSCORE', timers, group)
  if redis.call('ZSCORE', ready, group) or (due and tonumber(due) <= now) then count = count - 1 end
end
return count
