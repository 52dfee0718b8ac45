-- retry_later: running tasks wait for another attempt; this one counts, unless the origin asked for a pause.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, owner}, then per lease {id, generation, delay_ms, error, code, status, attempts: '1' if it
--         counts, else '0', slow: as in `close_callback`, phases: of a download, absent: not known, and what
--         `cool_down` needs}
-- from    running, this owner and generation
-- to      pending
-- answer  per lease: 'done' | 'lease_lost' | 'cancelled'
-- repeat  'done' again, nothing changed
--
-- After a failure, a callback destination gets one delivery at a time until one succeeds, so that a dead host takes
-- only one slot of the notifier.

local kind = call.kind
local answers = {}
for item in items() do
  local holder, queue, host, attempts = claim(kind, item.id, call.owner, item.generation)
  if holder == 'held' then
    leave(kind, item.id, queue)
    requeue(kind, item.id, queue, now + item.delay_ms)
    local task = key_task(kind, item.id)
    redis.call('HSET', task, 'settled', settled_by(call.owner, item.generation),
      'error', item.error, 'code', item.code, 'status', item.status, 'attempts', sum_of(attempts, item.attempts))
    cool_down(item.id, queue, host, item)
    leave_host(item.id, queue, host)
    if kind == 'download' then redis.call('HDEL', task, 'phases') end
    if item.phases then redis.call('HSET', task, 'phases', item.phases) end
    remember(kind, item.id, item.error)
    if kind == 'callback' then
      redis.call('HSET', key_queue_record(kind, queue), 'limit', 1)
      note_answer(queue, false, item.slow)
    end
    touch(kind, queue)
  elseif holder == 'cancelled' then
    free_cancelled(item.id, queue)
  end
  answers[#answers + 1] = ANSWERS[holder]
end
place_touched()
return answers
