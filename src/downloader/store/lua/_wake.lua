-- Which instance learns that work can run; loaded behind `_hosts.lua`. See `docs/design/fleet.md`.
--
-- `idle` has the instances that have a free slot and whose last lease call left them nothing to do. What becomes
-- runnable takes one off and publishes to it alone. Two of the idle ones may have a duty besides: the waiter looks when
-- the first timer is due, and the watcher looks `BACKUP_MS` after an instance was woken or should have looked, because that one
-- may be frozen. A duty is a time and an instance, and ends by itself.

-- How long an instance counts as idle after its last look: three times `LOOK_S` of the scheduler.
local IDLE_MS = 15000
-- `LOOK_S` of the scheduler: each idle instance looks this often, whatever it is told.
local LOOK_MS = 5000
-- After so long somebody else looks for what an instance was woken for.
local BACKUP_MS = 1500

-- Tells an instance to look in so many ms. Answers whether it may have heard that: in a Cluster PUBLISH counts
-- only those that are connected to this node.
local function tell(kind, instance, wait_ms)
  return redis.pcall('PUBLISH', key_wake_one(kind, instance), string.format('%.0f', wait_ms)) ~= 0 or in_cluster
end

-- The instance that has a duty, and the time at which it looks.
local function holder_of(duty)
  local at, instance = string.match(redis.call('GET', duty) or '', '^(%d+) (.*)$')
  return instance, tonumber(at)
end

-- Notes that an instance has a duty. That of the watcher ends when it is to look, so that what becomes runnable
-- later has another; that of the waiter when the watcher looks. An idle waiter prolongs it each time that it looks.
local function assign(duty, instance, at, kept_ms)
  redis.call('SET', duty, string.format('%.0f %s', at, instance), 'PX', math.ceil(math.max(kept_ms, 1)))
end

-- Lets one of the idle instances other than `without` look at this time. One that looks no later is enough.
-- Answers which it is; nil if nobody hears it.
local function appoint(kind, duty, at, kept_ms, without)
  local holder, looks = holder_of(duty)
  if holder and holder ~= without and looks <= at then return holder end
  -- The last to have looked is the last to be woken. One that leaves work to others is taken if there is no other.
  for _, range in ipairs({{now, now - IDLE_MS}, {'+inf', '(' .. now}}) do
    for _, instance in ipairs(redis.call('ZREVRANGEBYSCORE', key_idle(kind), range[1], range[2], 'LIMIT', 0, 9)) do
      if instance ~= without then
        if tell(kind, instance, at - now) then
          assign(duty, instance, at, kept_ms)
          return instance
        end
        redis.call('ZREM', key_idle(kind), instance)
      end
    end
  end
end

-- Lets a watcher look after `at`, the time at which this instance looks.
local function watch(kind, instance, at)
  appoint(kind, key_watcher(kind), at + BACKUP_MS, at + BACKUP_MS - now, instance)
end

-- Wakes the instance that has been idle for longest, of those with a score of at most `most`. Answers whether there
-- was one.
local function wake_one(kind, most)
  local idle = key_idle(kind)
  redis.call('ZREMRANGEBYSCORE', idle, '-inf', now - IDLE_MS)
  while true do
    local instance = redis.call('ZRANGEBYSCORE', idle, '-inf', most, 'LIMIT', 0, 1)[1]
    if not instance then return false end
    redis.call('ZREM', idle, instance)
    if tell(kind, instance, 0) then
      watch(kind, instance, now)
      return true
    end
  end
end

-- How long the waiter keeps its duty.
local function waiter_ms(due_ms)
  return math.min(due_ms, LOOK_MS) + BACKUP_MS
end

-- Lets an idle instance wait for the first timer. Answers whether there is one.
local function wait_for_timer(kind)
  local first = redis.call('ZRANGE', key_timers(kind), 0, 0, 'WITHSCORES')
  if not first[2] then return true end
  local at = math.max(now, tonumber(first[2]))
  local waiter = appoint(kind, key_waiter(kind), at, waiter_ms(at - now))
  if waiter and at - now <= LOOK_MS then watch(kind, waiter, at) end
  return waiter ~= nil
end

-- Whether a group of this kind can run, perhaps not in each instance.
local function can_run(kind)
  return redis.call('EXISTS', key_ready(kind)) == 1
    or kind == 'callback' and redis.call('EXISTS', key_unproven()) == 1
end

-- An instance leases nothing for now, and its duties pass to others.
local function resign(kind, instance)
  for _, duty in ipairs({key_waiter(kind), key_watcher(kind)}) do
    if holder_of(duty) == instance then redis.call('DEL', duty) end
  end
  wait_for_timer(kind)
end

-- At the end of a lease call of an instance that has room for `room` tasks and got `count`. `due_ms`: until it can
-- lease more, 0: at once, -1: not known. Answers in how many ms it looks, 0: at once, -1: when it would by itself.
local function note_idle(kind, instance, room, count, due_ms)
  redis.call('ZREM', key_idle(kind), instance)
  local left = can_run(kind)
  -- The next one shares in what is left. One that could take nothing passes it on to those that left nothing
  -- themselves: each becomes one that has, so this ends.
  if left and (count > 0 or due_ms ~= 0) then wake_one(kind, count > 0 and '+inf' or now) end
  if count >= room then
    resign(kind, instance)
    return due_ms
  end
  if due_ms == 0 then return 0 end
  local looks_in = -1
  if due_ms > 0 then
    local at = now + due_ms
    local waiter, looks = holder_of(key_waiter(kind))
    if not waiter or waiter == instance or looks > at then
      assign(key_waiter(kind), instance, at, waiter_ms(due_ms))
      if due_ms <= LOOK_MS then watch(kind, instance, at) end
      looks_in = due_ms
    elseif due_ms <= LOOK_MS then
      local watcher = holder_of(key_watcher(kind))
      if not watcher or watcher == instance then
        looks_in = due_ms + BACKUP_MS
        assign(key_watcher(kind), instance, now + looks_in, looks_in)
      end
    end
  end
  redis.call('ZADD', key_idle(kind), left and now + IDLE_MS or now, instance)
  redis.call('PEXPIRE', key_idle(kind), 2 * IDLE_MS)
  return looks_in
end

-- Called last by every script that touches groups, except `lease`.
local function place_touched()
  for _, each in ipairs(touched_order) do place(each[1], each[2]) end
  for kind in pairs(joined) do
    if wake_one(kind, '+inf') then first_joined[kind] = nil end
  end
  for kind in pairs(earlier) do
    if not wait_for_timer(kind) then first_joined[kind] = true end
  end
  -- Nobody of this version is idle. Instances of earlier versions hear this channel only, and know of what was
  -- there before. What is written stands, also where the store's user may not publish.
  for kind in pairs(first_joined) do redis.pcall('PUBLISH', key_wake(kind), '') end
end
