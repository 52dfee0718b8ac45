-- Shared by all transitions, behind `base`, the key functions and `_pace.lua`. `_hosts.lua`, `_ended.lua` and
-- `_wake.lua` follow, and behind them the transitions, each as a function that calls `begin` first.
--
-- Time is the server's, in ms, the same for the whole script. Numbers from Redis are strings: `tonumber`
-- before every comparison. Expected refusals are values, never errors.
--
-- Arguments are JSON objects: the first has the arguments of the whole call, each further object is an item. Durations
-- (names that end in `_ms`) and counts are numbers. Values that are stored or compared are strings, because cjson
-- reads every number as a double. Answers are lists of names and values, like the reply to HGETALL.

-- State of one call. The server keeps the variables of a library between calls, so all variables that belong to a call
-- are declared here, and `begin` sets each of them. All other variables in these files are constants or functions.
local arguments, call, now

-- Reasons for `place_touched` to wake instances. By kind and type of callback: a queue that has become runnable, and
-- the earliest new timer. `first`: the kinds with a new first queue or a new earliest timer.
local joined, earlier, first

-- Queues with a change of tasks, slots or limit in this call, in the order of the first change. A batch often changes
-- a queue many times, but `place` is called once per queue.
local touched, touched_order

-- Whether tokens take turns, and the sets for which `note_turns` was called.
local tokens_in_use, turns_noted

-- The result of `present_types`; by type, a queue that this call has set aside.
local present, set_aside

-- The sets of queues that were seen to be empty, and the result of `ready_set` by callback queue.
local empty, known_set

-- The sets of queues that can run now. Separate sets let an instance bound the slots that callback destinations take
-- together if they have not answered quickly lately, and those among them that have failed.
local ready_sets

-- Begins a call.
local function begin(keys, argv)
  local time = redis.call('TIME')
  base, arguments, call = keys[1], argv, cjson.decode(argv[1])
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  joined, earlier, first = {download = {}, callback = {}}, {download = {}, callback = {}}, {}
  touched, touched_order = {}, {}
  tokens_in_use, turns_noted = nil, {}
  present, set_aside = nil, {}
  empty, known_set = {}, {}
  ready_sets = {
    download = {key_ready('download')},
    callback = {key_ready('callback'), key_unproven(), key_failing()},
  }
end

-- Iterates over the call's items.
local function items()
  local index = 1
  return function()
    index = index + 1
    if arguments[index] then return cjson.decode(arguments[index]) end
  end
end

-- The text of a stored job, or false. A key of another type counts as a job that cannot be read.
local function stored_job(id)
  local spec = redis.pcall('GET', key_job(id))
  return type(spec) == 'table' and '' or spec
end

-- Fields of a stored job, without lists and objects; none of a job that cannot be read.
local function decoded(spec)
  local readable, job = pcall(cjson.decode, spec)
  local fields = {}
  for name, value in pairs(readable and type(job) == 'table' and job or {}) do
    if type(value) ~= 'table' and value ~= cjson.null then fields[name] = value end
  end
  return fields
end

-- Fields of a task that is about to be changed. A key of a wrong type is deleted, and the task continues without a
-- record.
local function task_fields(kind, id, ...)
  local fields = redis.pcall('HMGET', key_task(kind, id), ...)
  if not fields.err then return fields end
  redis.call('DEL', key_task(kind, id))
  return redis.call('HMGET', key_task(kind, id), ...)
end

-- The sum of a whole number in a task's record and an amount; other texts, and false, count as 0.
local function sum_of(text, amount)
  local digits = text and #text < 16 and string.match(text, '^%-?%d+$')
  return (digits and tonumber(digits) or 0) + amount
end

-- Adds to a number in a task's record; a text that is no number counts as 0.
local function add_to(kind, id, name, amount)
  local sum = redis.pcall('HINCRBY', key_task(kind, id), name, amount)
  if type(sum) == 'number' then return sum end
  redis.call('HSET', key_task(kind, id), name, amount)
  return amount
end

-- The type of a queue of callbacks; '' for downloads.
local function type_of(kind, queue)
  return kind == 'callback' and string.match(queue, '^%S*') or ''
end

-- How long the last answer of a callback destination counts.
local ANSWER_COUNTS_MS = 600 * 1000

-- The set for a queue that can run now.
local function ready_set(kind, queue)
  if kind == 'download' then return key_ready(kind) end
  if not known_set[queue] then
    known_set[queue] = redis.call('EXISTS', key_proven(queue)) == 1 and key_ready(kind)
      or redis.call('EXISTS', key_disproven(queue)) == 1 and key_failing() or key_unproven()
  end
  return known_set[queue]
end

-- The first `count` queues of a set of queues that can run now.
local function first_ready(set, count)
  if empty[set] then return {} end
  local queues = redis.call('ZRANGE', set, 0, count - 1)
  empty[set] = not queues[1]
  return queues
end

-- Removes a queue from the sets of queues that can run now, except from `kept`.
local function leave_ready(kind, queue, kept)
  for _, set in ipairs(ready_sets[kind]) do
    if set ~= kept then redis.call('ZREM', set, queue) end
  end
end

-- Notes how a destination has answered a callback. The marks need not be deleted when the other one is set: `proven` is
-- examined first, and a mark that was set earlier ends earlier.
local function note_answer(queue, taken, slow)
  known_set[queue] = nil
  if taken and not slow then
    redis.call('SET', key_proven(queue), '1', 'PX', ANSWER_COUNTS_MS)
    return
  end
  redis.call('SET', key_disproven(queue), '1', 'PX', ANSWER_COUNTS_MS)
  -- A quick refusal takes a slot for a moment only, so it does not count against a destination that has answered.
  if slow then redis.call('DEL', key_proven(queue)) end
end

-- How long turns of tokens are kept after the last change.
local TURNS_MS = 24 * 3600 * 1000

-- Most stale entries of `turns` (the queue has left the set) that one search drops.
local MOST_STALE = 100

-- Whether jobs with a token were submitted lately. Then tokens take turns, see `docs/design/tenants.md`.
local function tokens_take_turns()
  if tokens_in_use == nil then tokens_in_use = redis.call('EXISTS', key_tokens()) == 1 end
  return tokens_in_use
end

-- Notes that a token submits. `''` stands for jobs without a token.
local function note_token(token)
  redis.call('ZADD', key_tokens(), 'NX', 0, '', 0, token)
  redis.call('PEXPIRE', key_tokens(), TURNS_MS)
  tokens_in_use = true
end

local function key_turns_in(set, token)
  return key_turns(string.sub(set, #base + 1), token)
end

-- The first (place 0) or last (-1) queue of a token in a set, and its score; nil if there is none. If too many entries
-- had to be dropped, nil and the score of the last one dropped.
local function queue_of_token(set, token, place)
  local turns, seen = key_turns_in(set, token), nil
  for _ = 1, MOST_STALE do
    local entry = redis.call('ZRANGE', turns, place, place, 'WITHSCORES')
    if not entry[1] then return nil end
    if redis.call('ZSCORE', set, entry[1]) == entry[2] then return entry[1], tonumber(entry[2]) end
    redis.call('ZREM', turns, entry[1])
    seen = tonumber(entry[2])
  end
  return nil, seen
end

-- Notes 16 queues at each end of a set in `turns`: an earlier version adds queues at the end without noting them, and
-- the entries of the first queues may have expired.
local function note_turns(kind, set)
  if turns_noted[set] then return end
  turns_noted[set] = true
  for _, from in ipairs({0, -16}) do
    local queues = redis.call('ZRANGE', set, from, from + 15, 'WITHSCORES')
    for i = 1, #queues, 2 do
      local token = redis.call('HGET', key_queue_record(kind, queues[i]), 'token') or ''
      local turns = key_turns_in(set, token)
      if redis.call('ZADD', turns, queues[i + 1], queues[i]) == 1 then
        redis.call('PEXPIRE', turns, TURNS_MS)
        note_token(token)
      end
    end
  end
end

-- The score with which a queue joins a set whose highest score is `last`: behind all queues, or, if tokens take turns,
-- behind the queues of its own token, but not first.
local function turn_of(set, kind, queue, last)
  if not tokens_take_turns() then return last + 1 end
  local token = redis.call('HGET', key_queue_record(kind, queue), 'token') or ''
  local turns = key_turns_in(set, token)
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')[2] or '0'
  redis.call('ZREMRANGEBYSCORE', turns, '-inf', '(' .. first)
  local _, own = queue_of_token(set, token, -1)
  local score = math.max(tonumber(first), own or 0) + 1
  redis.call('ZADD', turns, score, queue)
  redis.call('PEXPIRE', turns, TURNS_MS)
  redis.call('PEXPIRE', key_tokens(), TURNS_MS)
  return score
end

-- Queues in `failing` or `aside` can also be found by their timer, after one to two times as long.
local ASIDE_MS = 30000

-- Gives a queue that can run a timer too: earlier versions do not know `failing`, and those that can deliver to a queue
-- in `aside` may be gone. Many of these timers fall together.
local function time_again(kind, queue)
  redis.call('ZADD', key_timers(kind), (math.floor(now / ASIDE_MS) + 2) * ASIDE_MS, queue)
end

-- Adds a queue at its place in its set; a queue that is in the set keeps its place. `left`: it is in no set.
local function join_ready(kind, queue, left)
  local set = ready_set(kind, queue)
  if set == key_failing() then time_again(kind, queue) end
  if not left then
    if redis.call('ZSCORE', set, queue) then return end
    leave_ready(kind, queue, set)
  end
  empty[set] = nil
  local last = redis.call('ZRANGE', set, -1, -1, 'WITHSCORES')[2]
  redis.call('ZADD', set, turn_of(set, kind, queue, tonumber(last or '0')), queue)
  if not last then first[kind] = true end
  joined[kind][type_of(kind, queue)] = queue
end

-- Upper bound of the time between two starts that follows from a rate.
local MAX_GAP_MS = 24 * 3600 * 1000

-- A start that is late by at most this time counts as punctual, so that late calls of instances do not lower the rate.
local CATCH_UP_MS = 1000

-- Fields of a queue's record that decide when the next task may start: after the cooldown, and a gap after `started`.
local GATE = {'cooling', 'rate', 'delay', 'started', 'pace'}

-- The gap: least ms between two starts, perhaps with a fraction.
local function gap_of(rate, delay, pace)
  local per_s = tonumber(rate or nil)
  local paced = pace and pace_at(pace, now)
  if paced then per_s = math.min(paced, per_s or paced) end
  return math.max(per_s and math.min(1000 / per_s, MAX_GAP_MS) or 0, (tonumber(delay or nil) or 0) * 1000)
end

-- The longest cooldown, also after many doublings; `fetch.retry` has the same bound for a cooldown from an origin.
local MAX_COOLDOWN_MS = 3600 * 1000

-- The time (ms, perhaps with a fraction) before which a queue starts no task, from the values of GATE. A value too far
-- in the future is ignored: it can only come from a server clock that was set back.
local function opens(cooling, rate, delay, started, pace)
  local cools, last = tonumber(cooling or nil) or 0, tonumber(started or nil)
  if cools > now + MAX_COOLDOWN_MS then cools = 0 end
  if not last or last > now + CATCH_UP_MS then return cools end
  return math.max(cools, last + gap_of(rate, delay, pace))
end

-- Notes the start of a task that was due at `due`, for the rate and the delay. If the task was due before the planned
-- time and is at most `CATCH_UP_MS` late, the next gap begins at the planned time, else now. With a `delay`, which is
-- a minimum, the gap always begins now. A job past its deadline sends no request, so it does not count as a start.
local function note_start(record, due, spec, cooling, rate, delay, started, pace)
  if gap_of(rate, delay, pace) == 0 or (tonumber(decoded(spec).deadline) or math.huge) <= now then return end
  local planned = opens(cooling, rate, delay, started, pace)
  local late = gap_of(nil, delay) == 0 and due <= planned and now - planned <= CATCH_UP_MS
  redis.call('HSET', record, 'started', string.format('%.3f', late and planned or now),
    unpack(pace and {'pace', pace_with_start(pace, now)} or {}))
end

-- The pace of a queue or host for its display, from the values of GATE; '' if there is none below its rate.
local function pace_shown(cooling, rate, delay, started, pace)
  local per_s = pace and pace_at(pace, now)
  return per_s and per_s < (tonumber(rate or nil) or math.huge) and string.format('%.3g', per_s) or ''
end

-- Jobs with a priority above 0 are also in `urgent`, with a score of priority and due time: scores of priority 9 begin
-- at 0, of priority 8 at `LEVEL`, and so on. Due times are less than `LEVEL` (the year 11476), and a double holds all
-- scores exactly.
local MAX_PRIORITY, LEVEL = 9, 3e14

-- Adds a pending task to its queue.
local function enqueue(kind, id, queue, due, priority)
  redis.call('ZADD', key_pending(kind, queue), due, id)
  priority = tonumber(priority or nil)
  if priority then redis.call('ZADD', key_urgent(queue), (MAX_PRIORITY - priority) * LEVEL + due, id) end
end

-- The next task of a queue: the first due task of the highest priority, or the first task if none is due. Returns the
-- id, the due time, and whether the task has a priority; nil for an empty queue. `head` is the first task of the queue
-- with its due time.
local function next_task(kind, queue, head)
  local due = tonumber(head[2])
  if not due then return nil end
  local from = due <= now and kind == 'download' and 0
  while from do
    local first = redis.call('ZRANGEBYSCORE', key_urgent(queue), from, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not first[1] then break end
    local score = tonumber(first[2])
    local noted = score % LEVEL
    local queued = tonumber(redis.call('ZSCORE', key_pending(kind, queue), first[1]) or nil)
    if queued ~= noted then
      -- A version of the service without priorities has leased the task, and perhaps made it pending again.
      redis.call('ZREM', key_urgent(queue), first[1])
      if queued then redis.call('ZADD', key_urgent(queue), score - noted + queued, first[1]) end
    elseif noted <= now then
      return first[1], noted, true
    else
      from = string.format('%.0f', score - noted + LEVEL)
    end
  end
  return head[1], due, false
end

-- Fields of an aggregation's record that an operator may set. While an operator's value applies, `asked_<field>` has
-- the value from the jobs.
local ADJUSTABLE = {'limit', 'rate', 'delay'}

-- Keeps the record of an aggregation without tasks if an operator has set a value, but removes the values from its
-- jobs. Returns whether the record was kept.
local function keep_adjusted(record, queue)
  local kept, theirs = redis.call('HGET', record, 'paused') == '1', {'proxy', 'token', 'counted'}
  for _, name in ipairs(ADJUSTABLE) do
    local asked = 'asked_' .. name
    if redis.call('HEXISTS', record, asked) == 1 then
      redis.call('HSET', record, asked, '')
      kept = true
    else
      theirs[#theirs + 1] = name
    end
  end
  if kept then
    redis.call('HDEL', record, unpack(theirs))
    redis.call('PERSIST', record)
    redis.call('ZADD', key_queues('download'), 0, queue)
  end
  return kept
end

-- The amounts that the quota of a token bounds.
local QUOTAS = {'jobs', 'bytes', 'aggregations', 'groups'}

-- The amount that would exceed a token's quota after adding `amounts`; nil if none would.
local function over_quota(token, quota, amounts)
  local used = redis.call('HMGET', key_usage(token), unpack(QUOTAS))
  for i, name in ipairs(QUOTAS) do
    local most, amount = quota[name], amounts[name] or 0
    if most and amount > 0 and tonumber(used[i] or '0') + amount > most then return name end
  end
end

-- Changes what counts against the quota of a token by some amounts.
local function count_usage(token, amounts)
  local usage, some = key_usage(token), false
  for _, name in ipairs(QUOTAS) do
    some = redis.call('HINCRBY', usage, name, amounts[name] or 0) > 0 or some
  end
  if not some then redis.call('DEL', usage) end
end

-- Counts a pending job; `counted` in its task has the bytes until the download is over.
local function count_job(id, token)
  local bytes = redis.call('STRLEN', key_job(id))
  redis.call('HSET', key_task('download', id), 'counted', bytes)
  count_usage(token, {jobs = 1, bytes = bytes})
end

-- Gives an aggregation that belongs to no token to this token.
local function belong(record, token, counted)
  if redis.call('HSETNX', record, 'token', token) == 1 and counted then
    redis.call('HSET', record, 'counted', 1)
    count_usage(token, {aggregations = 1})
  end
end

-- How long the pace of an aggregation without tasks is kept. By then it has reached nearly any rate.
local PACE_KEPT_MS = 2 * 3600 * 1000

-- Deletes the record of a queue without tasks, except for an operator's values, a cooldown, the last start and the
-- pace: they also bound jobs that are submitted one after the other.
local function forget(kind, queue)
  local record, ends = key_queue_record(kind, queue), 0
  if kind == 'download' then
    redis.call('DEL', key_urgent(queue))
    local fields = redis.call('HMGET', record, 'token', 'counted', unpack(GATE))
    if fields[2] then count_usage(fields[1], {aggregations = -1}) end
    if keep_adjusted(record, queue) then return end
    ends = opens(unpack(fields, 3))
    if pace_shown(unpack(fields, 3)) ~= '' then ends = math.max(ends, now + PACE_KEPT_MS) end
  elseif call.rated then
    local gate = redis.call('HMGET', record, unpack(GATE))
    local left = opens(unpack(gate)) - now
    if left > 0 then redis.call('SET', key_last_start(queue), gate[4], 'PX', math.ceil(left)) end
  end
  if ends > now then
    redis.call('HDEL', record, 'limit', 'proxy', 'rate', 'delay', 'token', 'counted')
    redis.call('PEXPIRE', record, math.ceil(ends - now))
  else
    redis.call('DEL', record)
  end
  redis.call('ZREM', key_queues(kind), queue)
end

-- Removes a queue from all sets of queues that can run now or later.
local function leave_sets(kind, queue)
  leave_ready(kind, queue)
  redis.call('ZREM', key_timers(kind), queue)
end

-- Puts a queue into `ready` or `unproven` if a task can run now, into `timers` if a task can run later, into none of
-- them if the queue is full, paused or has no pending task. Deletes a queue without tasks. `left`: it is in none yet.
local function place(kind, queue, left)
  local tasks = key_pending(kind, queue)
  local pending = redis.call('ZCARD', tasks)
  local running = redis.call('SCARD', key_running(kind, queue))
  local timers = key_timers(kind)
  if pending == 0 and running == 0 then
    forget(kind, queue)
    if not left then leave_sets(kind, queue) end
    return
  end
  -- The number of tasks, and behind the decimal point the number of running ones, so that `busiest` needs no other key.
  redis.call('ZADD', key_queues(kind), pending + running + math.min(running, 999999) / 1000000, queue)
  local record = redis.call('HMGET', key_queue_record(kind, queue), 'limit', 'paused', unpack(GATE))
  if pending == 0 or record[2] == '1' or running >= (tonumber(record[1]) or 1) then
    if not left then leave_sets(kind, queue) end
    return
  end
  local due = tonumber(redis.call('ZRANGE', tasks, 0, 0, 'WITHSCORES')[2])
  due = math.ceil(math.max(due, opens(unpack(record, 3))))
  if due <= now then
    if not left then redis.call('ZREM', timers, queue) end
    join_ready(kind, queue, left)
  else
    if not left then leave_ready(kind, queue) end
    local next_due = tonumber(redis.call('ZRANGE', timers, 0, 0, 'WITHSCORES')[2] or math.huge)
    redis.call('ZADD', timers, due, queue)
    if due < next_due then first[kind] = true end
    -- Of callbacks each type may have a first timer.
    if due < next_due or kind == 'callback' then
      local type = type_of(kind, queue)
      local timer = earlier[kind][type]
      if not timer or due < timer.due then earlier[kind][type] = {due = due, queue = queue} end
    end
  end
end

-- Describes an aggregation, as names and values; nil for one without work. `asked` has the values from the jobs for the
-- fields that an operator has set; '' stands for no value.
local function describe_aggregation(queue)
  local score = redis.call('ZSCORE', key_queues('download'), queue)
  if not score then return nil end
  local record = key_queue_record('download', queue)
  local fields = redis.call('HMGET', record, 'proxy', 'paused', 'why', unpack(GATE))
  local first = redis.call('ZRANGE', key_pending('download', queue), 0, 0, 'WITHSCORES')[2]
  local cools = tonumber(fields[4] or '0') > now
  local waits = first and fields[2] ~= '1'
  local values, asked = {}, {}
  for _, name in ipairs(ADJUSTABLE) do
    local pair = redis.call('HMGET', record, name, 'asked_' .. name)
    values[#values + 1], values[#values + 2] = name, pair[1] or ''
    if pair[2] then asked[#asked + 1], asked[#asked + 2] = name, pair[2] end
  end
  return {
    'name', queue, 'score', score, 'proxy', fields[1] or '', 'paused', fields[2] == '1' and '1' or '',
    'cooling', cools and fields[4] or '', 'why', cools and fields[3] or '', 'pace', pace_shown(unpack(fields, 4)),
    'due', waits and string.format('%.0f', math.ceil(math.max(tonumber(first), opens(unpack(fields, 4))))) or '',
    'values', values, 'asked', asked,
  }
end

-- The value of `settled` in a task's record, which names the lease that has settled the task.
local function settled_by(owner, generation)
  return generation .. ' ' .. owner
end

-- A short mark of the lease that has settled a task, for the record of a job that has ended.
local function mark_of(settled)
  return string.sub(redis.sha1hex(settled), 1, 4)
end

-- Whether a task is leased to an owner with a generation (a string): 'held' if so; 'repeated' if this lease has settled
-- the task already, and the caller missed the answer; 'cancelled' if a client has cancelled the download meanwhile;
-- else 'lost'. Also returns the task's queue, the host if the task has a place at a host, and for 'held' the attempts.
local function claim(kind, id, owner, generation)
  local task = task_fields(kind, id, 'state', 'owner', 'generation', 'settled', 'group', 'host', 'attempts')
  local queue, host = task[5], task[6]
  if queue and task[2] == owner and task[3] == generation then
    if task[1] == 'running' then return 'held', queue, host, task[7] end
    if task[1] == 'cancelled' then return 'cancelled', queue, host end
  end
  -- Earlier versions note the generation alone.
  if task[4] == settled_by(owner, generation) or task[4] == generation then return 'repeated', queue, host end
  if not task[1] then
    local marks = string.match(redis.call('HGET', key_ended(), id) or '', '^[^\n]*')
    local mark = kind == 'download' and string.sub(marks, 1, 4) or string.sub(marks, 5)
    if mark == mark_of(settled_by(owner, generation)) then return 'repeated' end
  end
  return 'lost', queue, host
end

-- Answers to an owner, by the result of `claim`.
local ANSWERS = {held = 'done', repeated = 'done', cancelled = 'cancelled', lost = 'lease_lost'}

-- Gives up the task's lease and slot.
local function leave(kind, id, queue)
  redis.call('ZREM', key_leases(kind), id)
  redis.call('SREM', key_running(kind, queue), id)
end

-- Makes a task without a lease pending again, due at `due`.
local function requeue(kind, id, queue, due)
  redis.call('HSET', key_task(kind, id), 'state', 'pending', 'due', due)
  redis.call('HDEL', key_task(kind, id), 'owner')
  enqueue(kind, id, queue, due, kind == 'download' and redis.call('HGET', key_task(kind, id), 'priority'))
end

-- After the death of this many workers during a task, the task is suspected to be the cause.
local SUSPECT_CRASHES = 2

-- The due time of a running task, which is its place in the queue if it is handed back. Missing in records of earlier
-- versions.
local function place_of(kind, id)
  return math.min(now, tonumber(redis.call('HGET', key_task(kind, id), 'due') or nil) or now)
end

-- How long a host's record is kept: longer than any cooldown and any gap.
local HOST_TTL_MS = MAX_GAP_MS + 3600 * 1000

-- Begins a cooldown in the record of a queue or host. `began`: when the download that was throttled began. `had`: how
-- many downloads per second the reporting instance has started there, and how many it runs; absent: the pace stays as
-- it is. `running`: how many run there in the fleet, in which those of other instances are assumed to start as often.
local function begin_cooldown(record, began, item, had, running)
  local fields = redis.call('HMGET', record, 'cooling', 'cooled', 'cooldowns', 'rate', 'pace')
  local ends, begun, count = tonumber(fields[1] or '0'), tonumber(fields[2] or '0'), tonumber(fields[3] or '0')
  if began > begun then
    if now >= 2 * ends - begun then count = 0 end
    begun, count = now, count + 1
    local per_s = had and had[1] * math.max(1, running / math.max(1, had[2]))
    local pace = per_s and pace_after_refusal(fields[5], began, now, tonumber(fields[4] or nil), per_s)
    if pace then redis.call('HSET', record, 'pace', pace) end
  end
  local length = item.asked and item.cool_ms or item.cool_ms * 2 ^ (count - 1)
  redis.call('HSET', record, 'cooling', math.max(ends, now + math.floor(math.min(length, MAX_COOLDOWN_MS))),
    'cooled', begun, 'cooldowns', count, 'why', item.error)
end

-- Begins a cooldown of an aggregation after a download was throttled, and of the host if the download has a place
-- there. `item` has cool_ms (absent: no cooldown), asked (whether the origin gave the length), host_too (false: the
-- pause was not asked for by the host of the job's URL), error, and `had` and `host_had` (see `begin_cooldown`).
--
-- If the origin gave no length, the length doubles with each successive cooldown. A cooldown is successive if the time
-- since the end of the last one is shorter than the last one was. A download that began before the last cooldown
-- belongs to that cooldown and does not count again.
local function cool_down(id, queue, host, item)
  if not item.cool_ms then return end
  local began = tonumber(redis.call('HGET', key_task('download', id), 'started') or nil) or now
  -- The download itself has left already.
  local running = redis.call('SCARD', key_running('download', queue)) + 1
  begin_cooldown(key_queue_record('download', queue), began, item, item.had, running)
  if host and item.host_too ~= false then
    begin_cooldown(key_host(host), began, item, item.host_had, redis.call('ZCARD', key_visits(host)))
    redis.call('PEXPIRE', key_host(host), HOST_TTL_MS)
  end
  add_to('download', id, 'throttled', 1)
end

-- The next `call.count` members of a sorted set with their scores, behind the last one read before (`call.id` with
-- `call.score`, '' for none), in ascending order, or with `rev` in descending order. If that one is gone or has moved,
-- all members with the same score are read again, so that none is skipped.
local function read_on(key, rev)
  local start = 0
  if call.id ~= '' then
    if redis.call('ZSCORE', key, call.id) == call.score then
      start = redis.call(rev and 'ZREVRANK' or 'ZRANK', key, call.id) + 1
    elseif rev then
      start = redis.call('ZCOUNT', key, '(' .. call.score, '+inf')
    else
      start = redis.call('ZCOUNT', key, '-inf', '(' .. call.score)
    end
  end
  return redis.call(rev and 'ZREVRANGE' or 'ZRANGE', key, start, start + call.count - 1, 'WITHSCORES')
end

-- Adds a failed attempt to the task's log of the last five: lines of `<ms> <error>`, the newest last.
local function remember(kind, id, text)
  local task = key_task(kind, id)
  local log = redis.call('HGET', task, 'log')
  local lines = {}
  if log then
    for line in string.gmatch(log, '[^\n]+') do lines[#lines + 1] = line end
  end
  lines[#lines + 1] = now .. ' ' .. string.gsub(text, '%c', ' ')
  while #lines > 5 do table.remove(lines, 1) end
  redis.call('HSET', task, 'log', table.concat(lines, '\n'))
end

local function touch(kind, queue)
  local name = kind .. ' ' .. queue
  if touched[name] then return end
  touched[name] = true
  touched_order[#touched_order + 1] = {kind, queue}
end
