-- waiting: how many queues have due tasks and a free slot; asked by an instance whose own slots are all taken.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, queue: one that does not count, or '', token: one whose queues do not count, or ''}
-- from    any
-- to      the same
-- answer  their number; with a token, of the first queues of some tokens only
-- repeat  harmless

local ready, timers = key_ready(call.kind), key_timers(call.kind)

-- How many tokens and due timers are examined at the most.
local EXAMINED = 100

if call.token == '' then
  local count = redis.call('ZCARD', ready) + redis.call('ZCOUNT', timers, '-inf', now)
  local due = redis.call('ZSCORE', timers, call.queue)
  if redis.call('ZSCORE', ready, call.queue) or (due and tonumber(due) <= now) then count = count - 1 end
  return count
end

note_turns(call.kind, ready)
local count = 0
for _, token in ipairs(redis.call('ZRANGE', key_tokens(), 0, EXAMINED - 1)) do
  if token ~= call.token and queue_of_token(ready, token, 0) then count = count + 1 end
end
for _, queue in ipairs(redis.call('ZRANGEBYSCORE', timers, '-inf', now, 'LIMIT', 0, EXAMINED)) do
  if (redis.call('HGET', key_queue_record(call.kind, queue), 'token') or '') ~= call.token then count = count + 1 end
end
return count
