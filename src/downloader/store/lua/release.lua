-- release: running tasks are handed back; the attempt does not count.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, owner}, then per lease {id, generation, error: the reason or '', delay_ms}
-- from    running, this owner and generation; or swept when it had this generation
-- to      pending; or the same with one crash less, as its holder has not died
-- answer  per lease: 'done' | 'lease_lost' | 'cancelled'
-- repeat  'done' again, nothing changed

local kind = call.kind
local answers = {}
for item in items() do
  local holder, queue, host = claim(kind, item.id, call.owner, item.generation)
  if holder == 'held' then
    leave(kind, item.id, queue)
    leave_host(item.id, queue, host)
    -- Without a delay the task gets its former place in the queue.
    requeue(kind, item.id, queue, item.delay_ms > 0 and now + item.delay_ms or place_of(kind, item.id))
    redis.call('HSET', key_task(kind, item.id), 'settled', settled_by(call.owner, item.generation))
    if item.error ~= '' then remember(kind, item.id, item.error) end
    touch(kind, queue)
  elseif holder == 'cancelled' then
    free_cancelled(item.id, queue)
  elseif holder == 'lost' and redis.call('HGET', key_task(kind, item.id), 'swept') == item.generation then
    redis.call('HDEL', key_task(kind, item.id), 'swept')
    add_to(kind, item.id, 'crashes', -1)
  end
  answers[#answers + 1] = ANSWERS[holder]
end
place_touched()
return answers
