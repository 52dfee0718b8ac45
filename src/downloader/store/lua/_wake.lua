-- Decides which instance is woken when work can run; loaded behind `_ended.lua`. See `docs/design/fleet.md`.
--
-- To look is to make a lease call. `idle` has the instances with a free slot that found nothing at their last look. A
-- script that makes work runnable removes one of them and publishes a message to it alone. Two idle instances have a
-- duty: the waiter looks when the first timer is due, but at least every `LOOK_MS`, because a wake-up may be lost. The
-- watcher looks `BACKUP_MS` after another instance was woken or should have looked, because that instance may be
-- frozen. The other instances look every `RARE_LOOK_MS`. The key of a duty holds a time and an instance, and expires.
--
-- `types` are the types of callbacks that an instance can deliver, as in ',http,kafka,'; '*' for all, and for
-- downloads. Instances with the same types share `idle` and the two duties.

-- How often the waiter looks at least: the longest time for which work waits if a wake-up was lost.
local LOOK_MS = 5000
-- A waiter that calls often notes its duty anew only after this time, and so looks earlier by at most this time.
local RENEW_MS = 250
-- How often an idle instance without a duty looks, in case that the instances with a duty are gone.
local RARE_LOOK_MS = 30000
-- How long an instance counts as idle after its last look.
local IDLE_MS = RARE_LOOK_MS + 3 * LOOK_MS
-- How long after a wake-up the watcher looks too.
local BACKUP_MS = 1500
-- How long types count as present after they were noted. A full instance makes no call until a slot is free.
local TYPES_MS = 60000

local ALL_TYPES = '*'

local function can_deliver(types, queue)
  return types == ALL_TYPES or string.find(types, ',' .. type_of('callback', queue) .. ',', 1, true) ~= nil
end

-- The types of all instances that have made a lease call lately.
local function present_types(kind)
  if kind == 'download' then return {ALL_TYPES} end
  if not present then
    present = {}
    local noted = redis.call('HGETALL', key_types())
    for i = 1, #noted, 2 do
      if tonumber(noted[i + 1]) > now - TYPES_MS then
        present[#present + 1] = noted[i]
      else
        redis.call('HDEL', key_types(), noted[i])
      end
    end
  end
  return present
end

-- The present types that can deliver to a queue, and true. If there are none, all present types, and false: any
-- instance may lease the callback, and hands it back.
local function types_for(kind, queue)
  local all, able = present_types(kind), {}
  for _, types in ipairs(all) do
    if can_deliver(types, queue) then able[#able + 1] = types end
  end
  if able[1] then return able, true end
  return all, false
end

-- Notes the types of an instance that makes a lease call.
local function note_types(kind, types)
  if kind == 'download' then return end
  if tonumber(redis.call('HGET', key_types(), types) or '0') <= now - TYPES_MS / 4 then
    redis.call('HSET', key_types(), types, now)
    redis.call('PEXPIRE', key_types(), 2 * TYPES_MS)
  end
end

-- Whether an instance with these types must leave a queue to instances that can deliver to it.
local function is_for_others(kind, types, queue)
  if can_deliver(types, queue) then return false end
  local _, some = types_for(kind, queue)
  return some
end

-- Whether there are instances with other types.
local function is_mixed(kind, types)
  if types == ALL_TYPES then return false end
  for _, other in ipairs(present_types(kind)) do
    if other ~= types then return true end
  end
  return false
end

-- Tells an instance to look in `wait_ms`. Returns whether it may have received the message; always true in a Cluster,
-- where PUBLISH counts only receivers that are connected to this node.
local function tell(kind, instance, wait_ms)
  return redis.pcall('PUBLISH', key_wake_one(kind, instance), string.format('%.0f', wait_ms)) ~= 0 or in_cluster
end

-- The instance that has a duty, and the time at which it looks.
local function holder_of(duty)
  local at, instance = string.match(redis.call('GET', duty) or '', '^(%d+) (.*)$')
  return instance, tonumber(at)
end

-- Notes that an instance has a duty for `kept_ms`. The watcher's duty ends when it is to look, so that later work gets
-- another watcher. The waiter's duty ends when the watcher looks; an idle waiter prolongs it with each look.
local function assign(duty, instance, at, kept_ms)
  redis.call('SET', duty, string.format('%.0f %s', at, instance), 'PX', math.ceil(kept_ms))
end

-- Gives a duty to an idle instance other than `without`, which is to look at `at`. A present holder that looks in the
-- future keeps the duty, and looks at `at` too if it would look later. Returns the holder and when it looks; nil if no
-- instance receives the message.
local function appoint(kind, types, duty, at, kept_ms, without)
  local holder, looks = holder_of(duty)
  if holder and holder ~= without and looks > now then
    if looks <= at then return holder, looks end
    if tell(kind, holder, at - now) then
      assign(duty, holder, at, kept_ms)
      return holder, at
    end
  end
  local idle = key_idle(kind, types)
  -- Take the instance that looked last, because it would be woken last. The second range has the instances that leave
  -- work to others.
  for _, range in ipairs({{now, now - IDLE_MS}, {'+inf', '(' .. now}}) do
    for _, instance in ipairs(redis.call('ZREVRANGEBYSCORE', idle, range[1], range[2], 'LIMIT', 0, 9)) do
      if instance ~= without then
        if tell(kind, instance, at - now) then
          assign(duty, instance, at, kept_ms)
          return instance, at
        end
        redis.call('ZREM', idle, instance)
      end
    end
  end
end

-- Gives the duty of the watcher to an instance with one of these types, for a look of `instance` at `at`.
local function watch(kind, able, instance, at)
  at = at + BACKUP_MS
  for _, types in ipairs(able) do
    if appoint(kind, types, key_watcher(kind, types), at, at - now, instance) then return end
  end
end

-- Wakes the instance that has been idle for longest among those with one of these types and a score of at most `most`.
-- Returns whether an instance was woken.
local function wake_one(kind, able, most)
  for _, types in ipairs(able) do
    local idle = key_idle(kind, types)
    redis.call('ZREMRANGEBYSCORE', idle, '-inf', now - IDLE_MS)
    while true do
      local instance = redis.call('ZRANGEBYSCORE', idle, '-inf', most, 'LIMIT', 0, 1)[1]
      if not instance then break end
      redis.call('ZREM', idle, instance)
      if tell(kind, instance, 0) then
        watch(kind, able, instance, now)
        return true
      end
    end
  end
  return false
end

-- In how many ms an idle instance without a duty is to look. Other for each instance, so that instances that look at the
-- same time drift apart.
local function rare_look_ms(instance)
  return RARE_LOOK_MS - 2 * tonumber(string.sub(redis.sha1hex(instance), 1, 3), 16)
end

-- When the waiter is to look, with the first timer at `due` (nil: there is none).
local function waiter_looks_at(due)
  return math.min(math.max(now, due or math.huge), now + LOOK_MS)
end

-- Gives the duty of the waiter to an idle instance with these types, for a timer at `due` (nil: none). Returns whether
-- there is one.
local function wait_for_timer(kind, types, due)
  local at = waiter_looks_at(due)
  local waiter, looks = appoint(kind, types, key_waiter(kind, types), at, at - now + BACKUP_MS)
  if waiter then watch(kind, {types}, waiter, looks) end
  return waiter ~= nil
end

-- The time of the first timer for instances with these types; the 64th timer if the first 63 are for others.
local function first_timer(kind, types)
  local last = 0
  while true do
    local timers = redis.call('ZRANGE', key_timers(kind), 0, last, 'WITHSCORES')
    for i = 1, #timers, 2 do
      if not is_for_others(kind, types, timers[i]) then return tonumber(timers[i + 1]) end
    end
    if #timers < 2 * (last + 1) then return nil end
    if last > 0 then return tonumber(timers[#timers]) end
    last = 63
  end
end

-- The types that can deliver to the first runnable queue; nil if no queue can run.
local function types_for_next(kind)
  for _, set in ipairs(ready_sets[kind]) do
    local queue = first_ready(set, 1)[1]
    if queue then return (types_for(kind, queue)) end
  end
end

-- Leaves a runnable queue to the instances that can deliver to it, which find it in `aside`. If they are gone, the
-- queue's timer makes it runnable for every instance later.
local function leave_to_others(kind, queue)
  leave_ready(kind, queue)
  time_again(kind, queue)
  local type = type_of(kind, queue)
  redis.call('ZADD', key_aside(type), 'NX', now, queue)
  redis.call('PEXPIRE', key_aside(type), 3 * ASIDE_MS)
  set_aside[type] = queue
end

-- Wakes an instance for each type with a queue that was set aside.
local function wake_others(kind)
  for _, queue in pairs(set_aside) do wake_one(kind, types_for(kind, queue), '+inf') end
end

-- Passes the duties of an instance that leases nothing for now to other instances.
local function resign(kind, types, instance)
  local had_duty = false
  for _, duty in ipairs({key_waiter(kind, types), key_watcher(kind, types)}) do
    if holder_of(duty) == instance then had_duty = redis.call('DEL', duty) == 1 end
  end
  local due = first_timer(kind, types)
  if due or had_duty then wait_for_timer(kind, types, due) end
end

-- Called at the end of a lease call by an instance with room for `room` tasks, which got `count`. `due_ms`: ms until
-- more can run (0: now, -1: not known). Returns the ms until the instance is to look (0: now, -1: when it has room).
local function note_idle(kind, types, instance, room, count, due_ms)
  local idle, waits, watches = key_idle(kind, types), key_waiter(kind, types), key_watcher(kind, types)
  redis.call('ZREM', idle, instance)
  note_types(kind, types)
  local left = types_for_next(kind)
  -- Wake another instance for the remaining work. An instance that took nothing wakes only instances that have left no
  -- work to others; it becomes one that has, so the chain ends.
  if left and (count > 0 or due_ms ~= 0) then wake_one(kind, left, count > 0 and '+inf' or now) end
  if count >= room then
    resign(kind, types, instance)
    return due_ms
  end
  if due_ms == 0 then return 0 end
  local at = waiter_looks_at(due_ms > 0 and now + due_ms or nil)
  local waiter, waiter_at = holder_of(waits)
  local looks_in = rare_look_ms(instance)
  if waiter == instance and waiter_at > now + LOOK_MS - RENEW_MS and waiter_at <= at then
    looks_in = waiter_at - now
  elseif not waiter or waiter == instance or waiter_at > at then
    looks_in = at - now
    assign(waits, instance, at, looks_in + BACKUP_MS)
    watch(kind, {types}, instance, at)
  else
    local watcher = holder_of(watches)
    if not watcher or watcher == instance then
      looks_in = math.max(waiter_at - now + BACKUP_MS, 1)
      assign(watches, instance, now + looks_in, looks_in)
    end
  end
  redis.call('ZADD', idle, left and now + IDLE_MS or now, instance)
  redis.call('PEXPIRE', idle, 2 * IDLE_MS)
  return looks_in
end

-- Whether the calling process itself takes the next task: it was idle, and its lease call follows in the same round
-- trip.
local function is_own_next(kind, able)
  local own = call.own and call.own[kind]
  for _, types in ipairs(own and able or {}) do
    if redis.call('ZREM', key_idle(kind, types), own) == 1 then return true end
  end
  return false
end

local function is_anybody_idle(kind)
  for _, types in ipairs(present_types(kind)) do
    if redis.call('EXISTS', key_idle(kind, types)) == 1 then return true end
  end
  return false
end

-- Called last by every script that touches queues, except `lease`.
local function place_touched()
  for _, queue in ipairs(touched_order) do place(queue[1], queue[2]) end
  local told = {}
  for kind, queues in pairs(joined) do
    for _, queue in pairs(queues) do
      local able = types_for(kind, queue)
      told[kind] = is_own_next(kind, able) or wake_one(kind, able, '+inf') or told[kind]
    end
  end
  for kind, queues in pairs(earlier) do
    for _, timer in pairs(queues) do
      for _, types in ipairs(types_for(kind, timer.queue)) do
        told[kind] = wait_for_timer(kind, types, timer.due) or told[kind]
      end
    end
  end
  -- Instances of earlier versions listen on this channel only, and already know of earlier work. `pcall`, because the
  -- writes must stand even if the store's user may not publish.
  for kind in pairs(first) do
    if not told[kind] and not is_anybody_idle(kind) then redis.pcall('PUBLISH', key_wake(kind), '') end
  end
end
