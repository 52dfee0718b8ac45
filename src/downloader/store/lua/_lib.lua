-- Shared by all transitions; loaded in front of each, behind `base` and the key functions. `_hosts.lua` follows.
--
-- Time is the server's, in ms, the same for the whole script. Numbers from Redis are strings: `tonumber`
-- before every comparison. Expected refusals are values, never errors.
--
-- Arguments are JSON objects: the first holds what concerns the whole call, each further one is an item.
-- What is stored or compared is a string in them, because cjson reads every number as a double; durations
-- (names that end in `_ms`) and counts are numbers. Answers are lists of names and values, as of HGETALL.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local call = cjson.decode(ARGV[1])

-- Iterates over the call's items.
local function items()
  local index = 1
  return function()
    index = index + 1
    if ARGV[index] then return cjson.decode(ARGV[index]) end
  end
end

-- Attempts of a task that people can read back.
local LOG_LENGTH = 5

-- Kinds whose waiting instances this script wakes when it ends.
local woken = {}

-- The set for a group that can run now: `ready`, or `unproven` for callback destinations that have not answered
-- lately, so that an instance can bound how many of its slots they take together.
local function ready_set(kind, group)
  if kind == 'callback' and redis.call('EXISTS', key_proven(group)) == 0 then return key_unproven() end
  return key_ready(kind)
end

local function leave_ready(kind, group)
  redis.call('ZREM', key_ready(kind), group)
  if kind == 'callback' then redis.call('ZREM', key_unproven(), group) end
end

-- Adds the group at the end of its set; one that is in it already keeps its place.
local function join_ready(kind, group)
  local set = ready_set(kind, group)
  if redis.call('ZSCORE', set, group) then return end
  if kind == 'callback' then leave_ready(kind, group) end
  local last = redis.call('ZRANGE', set, -1, -1, 'WITHSCORES')
  if last[2] then
    redis.call('ZADD', set, tonumber(last[2]) + 1, group)
  else
    redis.call('ZADD', set, 1, group)
    woken[kind] = true
  end
end

-- The longest time between two starts that a rate can demand.
local MAX_GAP_MS = 24 * 3600 * 1000

-- A start that is late by at most this much counts as if it had been in time, so that a rate is reached
-- although instances ask late.
local CATCH_UP_MS = 1000

-- Fields of a group's record that say from when on its next task may start: when `started` has been and the time
-- between two starts has passed, and it does not cool down.
local GATE = {'cooling', 'rate', 'delay', 'started'}

-- ms between two starts, perhaps with a fraction.
local function gap_of(rate, delay)
  local gap = rate and rate ~= '' and math.min(1000 / tonumber(rate), MAX_GAP_MS) or 0
  return math.max(gap, delay and delay ~= '' and tonumber(delay) * 1000 or 0)
end

-- The longest cooldown, also after many doublings; `fetch.retry` has the same bound for those that an origin names.
local MAX_COOLDOWN_MS = 3600 * 1000

-- The time (ms, perhaps with a fraction) before which a group starts nothing, from the values of GATE. Times that can
-- lie so far in the future only because the server's clock was set back do not count.
local function opens(cooling, rate, delay, started)
  local cools, last = tonumber(cooling or '0'), tonumber(started or nil)
  if cools > now + MAX_COOLDOWN_MS then cools = 0 end
  if not last or last > now + CATCH_UP_MS then return cools end
  return math.max(cools, last + gap_of(rate, delay))
end

-- Notes that a task starts, for the rate and the delay. One has waited since `due`. If that was before the
-- planned time, the start is late; up to `CATCH_UP_MS` the next one is planned from the planned time. With a
-- `delay`, which is a minimum, the next one is planned from now. A job that is past its deadline sends no request, so
-- it is no start.
local function note_start(record, due, spec, cooling, rate, delay, started)
  if gap_of(rate, delay) == 0 or (cjson.decode(spec).deadline or math.huge) <= now then return end
  local planned = opens(cooling, rate, delay, started)
  local late = gap_of(nil, delay) == 0 and due <= planned and now - planned <= CATCH_UP_MS
  redis.call('HSET', record, 'started', string.format('%.3f', late and planned or now))
end

-- Jobs with a priority above 0 are in `urgent` too, by a score that has the priority and the due time: the score of
-- 9 begins at 0, of 8 at `LEVEL`, and so on. Due times are less than `LEVEL`, which is in the year 11476, and all scores are
-- integers that a double holds.
local MAX_PRIORITY, LEVEL = 9, 3e14

-- Adds a pending task to its group's queue.
local function enqueue(kind, id, group, due, priority)
  redis.call('ZADD', key_queue(kind, group), due, id)
  if priority then redis.call('ZADD', key_urgent(group), (MAX_PRIORITY - priority) * LEVEL + due, id) end
end

-- The task of a group that is next: of those that are due, the first of the highest priority. If none is due, the
-- first one. Answers its id, when it was due, and whether it has a priority; nil for an empty queue. `head` is the
-- first of the queue, with its due time.
local function next_task(kind, group, head)
  local due = tonumber(head[2])
  if not due then return nil end
  local from = due <= now and kind == 'download' and 0
  while from do
    local first = redis.call('ZRANGEBYSCORE', key_urgent(group), from, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if not first[1] then break end
    local score = tonumber(first[2])
    local wanted = score % LEVEL
    local queued = tonumber(redis.call('ZSCORE', key_queue(kind, group), first[1]) or nil)
    if queued ~= wanted then
      -- A version without priorities has leased it, and perhaps made it pending again.
      redis.call('ZREM', key_urgent(group), first[1])
      if queued then redis.call('ZADD', key_urgent(group), score - wanted + queued, first[1]) end
    elseif wanted <= now then
      return first[1], wanted, true
    else
      from = string.format('%.0f', score - wanted + LEVEL)
    end
  end
  return head[1], due, false
end

-- Fields of an aggregation's record that an operator may set. While an operator's value applies, the value that its
-- jobs ask for is kept in `asked_<field>`.
local ADJUSTABLE = {'limit', 'rate', 'delay'}

-- Keeps the record of an aggregation without tasks if an operator has set something, without what its jobs asked
-- for. Answers whether it is kept.
local function keep_adjusted(record, group)
  local kept = redis.call('HGET', record, 'paused') == '1'
  for _, name in ipairs(ADJUSTABLE) do
    local asked = 'asked_' .. name
    if redis.call('HEXISTS', record, asked) == 1 then
      redis.call('HSET', record, asked, '')
      kept = true
    end
  end
  if kept then
    redis.call('HDEL', record, 'proxy')
    redis.call('PERSIST', record)
    redis.call('ZADD', key_groups('download'), 0, group)
  end
  return kept
end

-- Forgets a group with its last task, but for what an operator has set, a cooldown and the last start: jobs that come
-- one after another must not start sooner than those that wait together.
local function forget(kind, group)
  local record = key_group(kind, group)
  if kind == 'download' then
    redis.call('DEL', key_urgent(group))
    if keep_adjusted(record, group) then return end
  end
  local ends = kind == 'download' and opens(unpack(redis.call('HMGET', record, unpack(GATE)))) or 0
  if ends > now then
    redis.call('HDEL', record, 'limit', 'proxy', 'rate', 'delay')
    redis.call('PEXPIRE', record, math.ceil(ends - now))
  else
    redis.call('DEL', record)
  end
  redis.call('ZREM', key_groups(kind), group)
end

-- Puts a group where its tasks, its free slots and the time require: into `ready` or `unproven`, into `timers`,
-- into none of them, or out of the store with its last task.
local function place(kind, group)
  local queue = key_queue(kind, group)
  local pending = redis.call('ZCARD', queue)
  local running = redis.call('SCARD', key_running(kind, group))
  local timers = key_timers(kind)
  if pending == 0 and running == 0 then
    forget(kind, group)
    leave_ready(kind, group)
    redis.call('ZREM', timers, group)
    return
  end
  -- All of its tasks, and behind the point those that run, so that `busiest` needs no other key.
  redis.call('ZADD', key_groups(kind), pending + running + math.min(running, 999999) / 1000000, group)
  local record = redis.call('HMGET', key_group(kind, group), 'limit', 'paused', unpack(GATE))
  if pending == 0 or record[2] == '1' or running >= (tonumber(record[1]) or 1) then
    leave_ready(kind, group)
    redis.call('ZREM', timers, group)
    return
  end
  local due = tonumber(redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')[2])
  due = math.ceil(math.max(due, opens(unpack(record, 3))))
  if due <= now then
    redis.call('ZREM', timers, group)
    join_ready(kind, group)
  else
    leave_ready(kind, group)
    local first = redis.call('ZRANGE', timers, 0, 0, 'WITHSCORES')
    redis.call('ZADD', timers, due, group)
    -- Instances sleep until the first timer, which is earlier now.
    if not first[2] or due < tonumber(first[2]) then woken[kind] = true end
  end
end

-- Describes an aggregation, as names and values; nil if it has no work. `asked` has what its jobs ask for, for each
-- field that an operator has set; '' stands for no value.
local function describe_aggregation(group)
  local score = redis.call('ZSCORE', key_groups('download'), group)
  if not score then return nil end
  local record = key_group('download', group)
  local found = redis.call('HMGET', record, 'proxy', 'paused', 'why', unpack(GATE))
  local first = redis.call('ZRANGE', key_queue('download', group), 0, 0, 'WITHSCORES')[2]
  local cools = tonumber(found[4] or '0') > now
  local waits = first and found[2] ~= '1'
  local values, asked = {}, {}
  for _, name in ipairs(ADJUSTABLE) do
    local pair = redis.call('HMGET', record, name, 'asked_' .. name)
    values[#values + 1], values[#values + 2] = name, pair[1] or ''
    if pair[2] then asked[#asked + 1], asked[#asked + 2] = name, pair[2] end
  end
  return {
    'name', group, 'score', score, 'proxy', found[1] or '', 'paused', found[2] == '1' and '1' or '',
    'cooling', cools and found[4] or '', 'why', cools and found[3] or '',
    'due', waits and string.format('%.0f', math.ceil(math.max(tonumber(first), opens(unpack(found, 4))))) or '',
    'values', values, 'asked', asked,
  }
end

-- What a task notes of the call that has settled it.
local function settled_by(owner, generation)
  return generation .. ' ' .. owner
end

-- Whether the task is leased to this owner. 'held': yes, by the lease of this generation (a string). 'repeated':
-- this generation has settled it already, and the caller missed the answer. 'cancelled': a client has cancelled the
-- download meanwhile. 'lost': anything else. The second result is the task's group, the third its host if it has a
-- place there.
local function claim(kind, id, owner, generation)
  local task = redis.call('HMGET', key_task(kind, id), 'state', 'owner', 'generation', 'settled', 'group', 'host')
  local group, host = task[5], task[6]
  if task[1] == 'running' and task[2] == owner and task[3] == generation then return 'held', group, host end
  if task[1] == 'cancelled' and owner == task[2] and generation == task[3] then return 'cancelled', group, host end
  -- Earlier versions note the generation alone.
  if task[4] == settled_by(owner, generation) or task[4] == generation then return 'repeated', group, host end
  return 'lost', group, host
end

-- Answers to an owner, by what `claim` has found.
local ANSWERS = {held = 'done', repeated = 'done', cancelled = 'cancelled', lost = 'lease_lost'}

-- Gives up the task's lease and slot. This comes before all other writes: the server allows ZREM
-- and SREM when its memory is exhausted, and a script that has written once may go on writing.
local function leave(kind, id, group)
  redis.call('ZREM', key_leases(kind), id)
  redis.call('SREM', key_running(kind, group), id)
end

-- Makes a task without a lease pending again, due at this time.
local function requeue(kind, id, group, due)
  redis.call('HSET', key_task(kind, id), 'state', 'pending', 'due', due)
  redis.call('HDEL', key_task(kind, id), 'owner')
  enqueue(kind, id, group, due, kind == 'download' and redis.call('HGET', key_task(kind, id), 'priority'))
end

-- A task under which so many workers died may be what killed them.
local SUSPECT_CRASHES = 2

-- When a running task was due: its place in the queue if it is handed back. Records of earlier versions lack it.
local function place_of(kind, id)
  return math.min(now, tonumber(redis.call('HGET', key_task(kind, id), 'due') or now))
end

-- How long a host's record is kept: longer than any cooldown, and than any time between two starts.
local HOST_TTL_MS = MAX_GAP_MS + 3600 * 1000

-- Begins a cooldown, noted in this record. `began`: of the download whose origin asked for it.
local function begin_cooldown(record, began, item)
  local found = redis.call('HMGET', record, 'cooling', 'cooled', 'cooldowns')
  local ends, begun, count = tonumber(found[1] or '0'), tonumber(found[2] or '0'), tonumber(found[3] or '0')
  if began > begun then
    if now >= 2 * ends - begun then count = 0 end
    begun, count = now, count + 1
  end
  local length = item.asked and item.cool_ms or item.cool_ms * 2 ^ (count - 1)
  redis.call('HSET', record, 'cooling', math.max(ends, now + math.floor(math.min(length, MAX_COOLDOWN_MS))),
    'cooled', begun, 'cooldowns', count, 'why', item.error)
end

-- Begins a cooldown of an aggregation, because the origin of this running download asked for a pause, and of its host
-- if it has a place there. `item` has cool_ms (nothing is done without it), asked (whether the origin gave the length),
-- host_too (false: it was not the host of the job's URL that asked) and error. If the origin gave no length, it doubles
-- with each cooldown that follows another: one that begins less than the last one's length after the end of the last. If
-- this download began before the last cooldown, its answer is part of that cooldown.
local function cool_down(id, group, host, item)
  if not item.cool_ms then return end
  local began = tonumber(redis.call('HGET', key_task('download', id), 'started') or now)
  begin_cooldown(key_group('download', group), began, item)
  if host and item.host_too ~= false then
    begin_cooldown(key_host(host), began, item)
    redis.call('PEXPIRE', key_host(host), HOST_TTL_MS)
  end
  redis.call('HINCRBY', key_task('download', id), 'throttled', 1)
end

-- Notes a job among the newest failures, of which 200 are kept.
local function note_failure(id)
  redis.call('ZADD', key_failures(), now, id)
  redis.call('ZREMRANGEBYRANK', key_failures(), 0, -201)
end

-- Adds a failed attempt to the task's log: lines of `<ms> <error>`, the newest last.
local function remember(kind, id, text)
  local task = key_task(kind, id)
  local log = redis.call('HGET', task, 'log')
  local lines = {}
  if log then
    for line in string.gmatch(log, '[^\n]+') do lines[#lines + 1] = line end
  end
  lines[#lines + 1] = now .. ' ' .. string.gsub(text, '%c', ' ')
  while #lines > LOG_LENGTH do table.remove(lines, 1) end
  redis.call('HSET', task, 'log', table.concat(lines, '\n'))
end

-- Groups whose queue, slots or limit this script has changed, in the order of the first change. A batch often
-- changes one group many times, and each group is placed once.
local touched, touched_order = {}, {}

local function touch(kind, group)
  local name = kind .. ' ' .. group
  if touched[name] then return end
  touched[name] = true
  touched_order[#touched_order + 1] = {kind, group}
end

-- After a download: its callback of this group becomes pending, or the job without one ('') is kept for `keep_ms`.
local function conclude(id, callback, limit, keep_ms)
  if callback == '' then
    redis.call('ZADD', key_reap(), now + keep_ms, id)
    return
  end
  redis.call('HSETNX', key_group('callback', callback), 'limit', limit)
  redis.call('HSET', key_task('callback', id), 'state', 'pending', 'due', now, 'group', callback)
  redis.call('ZADD', key_queue('callback', callback), now, id)
  touch('callback', callback)
end

-- Called last by every script that touches groups.
local function place_touched()
  for _, each in ipairs(touched_order) do place(each[1], each[2]) end
  -- What is written stands, also where the store's user may not publish: then instances find new work when they look
  -- for it by themselves.
  for kind in pairs(woken) do redis.pcall('PUBLISH', key_wake(kind), '') end
end
