-- lease: due tasks become running, leased to one instance for a bounded time.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, owner, request, count: most tasks, lease_ms; last: queues that give tasks only if no other queue
--         can; never: queues that give no tasks; unproven: most callbacks to destinations that have not answered
--         quickly lately; failing: most of these to destinations that have failed; tokens: by token {most tasks before
--         it comes last, most tasks in all, most unproven callbacks}, token: the same for other tokens (both absent: no
--         bound); suspects: number of the owner's running tasks under which two workers died; room: number
--         of further tasks that the owner can work on, which is noted as idle if some room is left (absent: not noted);
--         types: see `_wake.lua` (absent: all); hosts: digest of the limits of hosts, see `_hosts.lua` (absent: none);
--         limits: these limits by host or pattern, each JSON, if the store lacks them; rates: starts per second of
--         callback destinations (absent: none)}
-- from    pending
-- to      running, with a new generation
-- answer  due_ms: ms until more can run (0: now, -1: not known); look_ms: ms until the owner is to ask again (0: now,
--         -1: not noted as idle); leases, each with id, queue, generation, attempts, crashes, throttled, limit, proxy,
--         token, spec, proven and failing ('1' or '', of a callback's destination), waited_ms (since the due time; -1:
--         the lease is repeated), age_ms (since the callback became pending), result (of a callback: the fields RESULT
--         of the download that are set). While all aggregations are paused, no download is leased.
--         Or lacks: 'limits'; the call has done nothing and is to be made again with `limits`.
-- repeat  the same request gets the same leases again, as far as the owner still holds them
--
-- Queues take turns: the first in `ready` gives one task (see `next_task`) and moves to the end. A download that cannot
-- start because of its host is parked, and the turn ends too.

if call.hosts and not has_limits() then return {'lacks', 'limits'} end

local kind, owner = call.kind, call.owner
local timers = key_timers(kind)
local unproven, failing, suspects = call.unproven, call.failing, call.suspects
local types = call.types or ALL_TYPES

-- Delay of a suspect that this instance may not run because it runs another suspect.
local SUSPECT_AGAIN_MS = 1000

-- Fields of a task's record and of a queue's record that a turn reads.
local TASK = {'generation', 'crashes', 'deliveries', 'attempts', 'throttled', 'since'}
local QUEUE = {'limit', 'proxy', 'token', unpack(GATE)}

local describe
do -- a script may have 200 local names
  -- What a callback needs of the download's result.
  local RESULT = {
    'state', 'attempts', 'error', 'code', 'status', 'size', 'sha256', 'mime', 'image', 'retried',
    'etag', 'last_modified', 'content_type', 'final_url', 'not_modified', 'finished',
  }

  -- The answer's entry for a lease. `task` and `record`: the values of TASK and QUEUE.
  function describe(id, queue, generation, set, waited, spec, task, record)
    local result, since = {}, task[6]
    if kind == 'callback' then
      local values = redis.pcall('HMGET', key_task('download', id), unpack(RESULT))
      for i, value in ipairs(values) do
        if value then
          result[#result + 1] = RESULT[i]
          result[#result + 1] = value
        end
      end
      since = since or values[#RESULT]
    end
    return {
      'id', id, 'queue', queue, 'generation', generation, 'attempts', task[4],
      'crashes', task[2], 'throttled', task[5], 'limit', record[1], 'proxy', record[2] or '',
      'token', record[3] or '', 'spec', spec,
      'proven', set == key_ready(kind) and '1' or '', 'failing', set == key_failing() and '1' or '',
      'waited_ms', waited, 'age_ms', now - (tonumber(since or nil) or now), 'result', result,
    }
  end
end

-- Copies this instance's rate for a callback destination into the destination's record, and the last start of the
-- former record. `gate`: the values of GATE, which are updated.
local function follow_rate(queue, gate)
  local record, rate = key_queue_record(kind, queue), call.rates and call.rates[queue] or false
  if rate == gate[2] then return end
  if rate then
    gate[4] = gate[4] or redis.call('GET', key_last_start(queue))
    redis.call('HSET', record, 'rate', rate, 'started', gate[4] or '')
  else
    redis.call('HDEL', record, 'rate')
  end
  gate[2] = rate
end

local excepted = {}
for _, queue in ipairs(call.last) do excepted[queue] = 'last' end
for _, queue in ipairs(call.never) do excepted[queue] = 'never' end

-- The sets from which the call takes queues: the sets of runnable queues, and, if there are instances with other types,
-- the sets of queues that those have left to this instance's types.
local sources, aside = {unpack(ready_sets[kind])}, {}
for type in string.gmatch(is_mixed(kind, types) and types or '', '[^,]+') do
  sources[#sources + 1] = key_aside(type)
  aside[key_aside(type)] = true
end

-- Most queues that a call leaves to others, so that it is short; due_ms 0 makes the caller ask again.
local MOST_LEFT = 100
local left_to_others = 0

-- Whether a queue is for other instances, to which the call then leaves it.
local function is_left(queue)
  if not is_for_others(kind, types, queue) then return false end
  if left_to_others < MOST_LEFT then
    leave_to_others(kind, queue)
    left_to_others = left_to_others + 1
  end
  return true
end

-- The first queues of a set. Queues that are for other instances leave the set.
local function first_queues(set, count)
  while true do
    local queues, left_before = {}, left_to_others
    for _, queue in ipairs(first_ready(set, count)) do
      if not is_left(queue) then queues[#queues + 1] = queue end
    end
    if left_to_others == left_before then return queues end
  end
end

-- Whether the call may get a task of another queue of `set`, one of `ready_sets`.
local function has_share(set)
  return set == key_ready(kind) or unproven > 0 and (set ~= key_failing() or failing > 0)
end

-- The next queue in the order of turns, and a queue that comes last. `at(place)` returns the queues in this order.
local function first_of_queues(at)
  local last
  for place = 0, #call.last + #call.never do
    local queue = at(place)
    if not queue then break end
    if not excepted[queue] then return queue end
    if excepted[queue] == 'last' then last = last or queue end
  end
  return nil, last
end

-- The remaining share of each token, and whether a token comes last or gets nothing. Jobs without a token have no
-- limit.
local left, limited = call.tokens or {}, false

local function note_limited(token)
  local some = left[token]
  limited = limited or math.min(some[1], some[2]) < 1 or kind == 'callback' and some[3] < 1
end

for token in pairs(left) do note_limited(token) end

local function take(token, set)
  if token == '' or not call.token then return end
  left[token] = left[token] or {unpack(call.token)}
  left[token][1], left[token][2] = left[token][1] - 1, left[token][2] - 1
  if set ~= key_ready(kind) then left[token][3] = left[token][3] - 1 end
  note_limited(token)
end

-- 'last', 'never', or nil.
local function rule_of(token, set)
  local some = left[token]
  if not some then return nil end
  if some[2] < 1 or set ~= key_ready(kind) and some[3] < 1 then return 'never' end
  return some[1] < 1 and 'last' or nil
end

local function to_end(token)
  local last = redis.call('ZRANGE', key_tokens(), -1, -1, 'WITHSCORES')[2]
  redis.call('ZADD', key_tokens(), tonumber(last) + 1, token)
end

-- The queue of a token at a place of a set. Queues that are for other instances leave the set.
local function not_for_others(set, token, place)
  repeat
    local queue = queue_of_token(set, token, place)
    if not queue or not is_left(queue) then return queue end
  until left_to_others == MOST_LEFT
end

-- The next queue of a set where some tokens come last or get nothing, and the token whose turn it is.
local function first_by_token(set)
  -- Most tokens that are examined.
  local MOST_TOKENS = 100
  note_turns(kind, set)
  local tokens, last, of = redis.call('ZRANGE', key_tokens(), 0, MOST_TOKENS - 1), nil, nil
  for _, token in ipairs(tokens) do
    local rule = rule_of(token, set)
    if rule ~= 'never' then
      local queue, second = first_of_queues(function(place) return not_for_others(set, token, place) end)
      if queue and not rule then return queue, token end
      if not last and (queue or second) then last, of = queue or second, token end
    end
  end
  if not last and #tokens == MOST_TOKENS then
    for _, token in ipairs(tokens) do to_end(token) end
  end
  return last, of
end

-- The next queue of a set, if the call may get one, and the token whose turn it is, if some tokens have limits.
local function first_of(set)
  if aside[set] then
    -- Bounded, because the call may get none of them.
    for _, queue in ipairs(redis.call('ZRANGE', set, 0, 15)) do
      if has_share(ready_set(kind, queue)) then return queue end
    end
    return nil
  end
  if not has_share(set) then return nil end
  if limited and tokens_take_turns() then return first_by_token(set) end
  local queues = first_queues(set, #call.last + #call.never + 1)
  local queue, last = first_of_queues(function(place) return queues[place + 1] end)
  return queue or last
end

-- The sets take turns, so that none delays another. If each call is for one task, the time decides which set is first.
local next_set = now

-- The next queue, the key of its set, what `next_set` becomes, and the token whose turn it is, see `first_of`. Tokens
-- move to the end only when their queue is taken, because `due_ms` only looks.
local function next_queue()
  for number = next_set, next_set + #sources - 1 do
    local set = sources[number % #sources + 1]
    local queue, token = first_of(set)
    if queue then return queue, set, number + 1, token end
  end
end

local function due_ms()
  if next_queue() or left_to_others == MOST_LEFT then return 0 end
  local due = first_timer(kind, types)
  return due and math.max(0, due - now) or -1
end

local leases = {}

local function answer()
  local due = due_ms()
  wake_others(kind)
  local look = call.room and note_idle(kind, types, owner, call.room, #leases, due) or due
  return {'due_ms', due, 'leases', leases, 'look_ms', look}
end

local memo = redis.call('GET', key_memo(kind, owner))
if memo and string.match(memo, '^%S+') == call.request then
  for id, generation in string.gmatch(memo, ' (%w+):(%d+)') do
    local holder, queue, host = claim(kind, id, owner, generation)
    if holder == 'held' then
      -- The lease starts again, because the holder counts from this request.
      redis.call('ZADD', key_leases(kind), now + call.lease_ms, id)
      prolong_visit(host, id)
      leases[#leases + 1] = describe(id, queue, generation, ready_set(kind, queue), -1, stored_job(id) or '',
        task_fields(kind, id, unpack(TASK)), redis.call('HMGET', key_queue_record(kind, queue), unpack(QUEUE)))
    end
  end
  redis.call('PEXPIRE', key_memo(kind, owner), call.lease_ms)
  return answer()
end

-- The end of this pause wakes all instances.
if kind == 'download' and redis.call('EXISTS', key_paused()) == 1 then
  return {'due_ms', -1, 'leases', leases, 'look_ms', -1}
end

-- Bounded, so that a call is short even if many queues fall due at once; due_ms 0 makes the caller ask again.
for _, queue in ipairs(redis.call('ZRANGEBYSCORE', timers, '-inf', now, 'LIMIT', 0, call.count + 64)) do
  redis.call('ZREM', timers, queue)
  join_ready(kind, queue)
end

local granted, turns = {call.request}, 0
while #leases < call.count and turns < 2 * call.count + 16 do
  local queue, set, after, first_token = next_queue()
  if not queue then break end
  turns, next_set = turns + 1, after
  if first_token then to_end(first_token) end
  redis.call('ZREM', set, queue)
  -- A failing queue is also in `timers`, and a queue that was set aside may be in other sets.
  local is_in_none = not aside[set] and set ~= key_failing()
  if aside[set] then set = ready_set(kind, queue) end
  local tasks, running = key_pending(kind, queue), key_running(kind, queue)
  local head = redis.call('ZRANGE', tasks, 0, 0, 'WITHSCORES')
  local record = redis.call('HMGET', key_queue_record(kind, queue), unpack(QUEUE))
  local gate, limit = {unpack(record, 4, #QUEUE)}, tonumber(record[1] or nil) or 1
  if kind == 'callback' then follow_rate(queue, gate) end
  local id, due, urgent = next_task(kind, queue, head)
  local not_before
  if id and due <= now and opens(unpack(gate)) <= now and redis.call('SCARD', running) < limit then
    local spec = stored_job(id)
    local host = call.hosts and spec and decoded(spec).host
    local task = key_task(kind, id)
    local former = task_fields(kind, id, unpack(TASK))
    local suspect = (tonumber(former[2] or nil) or 0) >= SUSPECT_CRASHES
    local starts = not suspect or suspects < 1
    if not starts then
      local priority = kind == 'download' and redis.call('HGET', task, 'priority')
      enqueue(kind, id, queue, now + SUSPECT_AGAIN_MS, priority)
    elseif host then
      starts, not_before = enter_host(host, id, queue, due, spec)
    end
    if starts then
      redis.call('ZREM', tasks, id)
      if urgent then redis.call('ZREM', key_urgent(queue), id) end
      -- The job was evicted or deleted by hand.
      if not spec then redis.call('DEL', key_task('download', id), key_task('callback', id)) end
    end
    if starts and spec then
      -- At least the time: a generation does not come twice, also where a failover has lost the last lease.
      local generation = string.format('%.0f', math.max((tonumber(former[1] or nil) or 0) + 1, now))
      if suspect then suspects = suspects + 1 end
      redis.call('HSET', task, 'state', 'running', 'owner', owner, 'group', queue, 'started', now,
        'generation', generation, 'due', due, 'deliveries', sum_of(former[3], 1), unpack(host and {'host', host} or {}))
      redis.call('SADD', running, id)
      note_start(key_queue_record(kind, queue), tonumber(head[2]), kind == 'download' and spec or '', unpack(gate))
      redis.call('ZADD', key_leases(kind), now + call.lease_ms, id)
      if set ~= key_ready(kind) then unproven = unproven - 1 end
      if set == key_failing() then failing = failing - 1 end
      leases[#leases + 1] = describe(id, queue, generation, set, now - due, spec, former, record)
      take(record[3] or '', set)
      granted[#granted + 1] = id .. ':' .. generation
    end
  end
  if not_before then
    redis.call('ZADD', timers, not_before, queue)
  else
    place(kind, queue, is_in_none)
  end
end
for _, queue in ipairs(touched_order) do place(queue[1], queue[2]) end

if #leases > 0 then
  redis.call('SET', key_memo(kind, owner), table.concat(granted, ' '), 'PX', call.lease_ms)
end
return answer()
