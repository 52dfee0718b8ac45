-- waiting: how many groups have due tasks and a free slot; asked by an instance whose own slots are all taken.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, group: one that does not count, or '', token: one whose groups do not count, or ''}
-- from    any
-- to      the same
-- answer  their number; with a token, of the first groups of some tokens only
-- repeat  harmless

local ready, timers = key_ready(call.kind), key_timers(call.kind)

-- How many tokens and due timers are examined at the most.
local EXAMINED = 100

if call.token == '' then
  local count = redis.call('ZCARD', ready) + redis.call('ZCOUNT', timers, '-inf', now)
  local due = redis.call('ZSCORE', timers, call.group)
  if redis.call('ZSCORE', ready, call.group) or (due and tonumber(due) <= now) then count = count - 1 end
  return count
end

note_turns(call.kind, ready)
local count = 0
for _, token in ipairs(redis.call('ZRANGE', key_tokens(), 0, EXAMINED - 1)) do
  if token ~= call.token and group_of_token(ready, token, 0) then count = count + 1 end
end
for _, group in ipairs(redis.call('ZRANGEBYSCORE', timers, '-inf', now, 'LIMIT', 0, EXAMINED)) do
  if (redis.call('HGET', key_group(call.kind, group), 'token') or '') ~= call.token then count = count + 1 end
end
return count
