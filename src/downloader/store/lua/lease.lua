-- lease: due tasks become running, leased to one instance for a bounded time.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind, owner, request, count: how many at the most, lease_ms, last: groups that give tasks only
--         if no other can, never: groups that give none, unproven: how many callbacks at the most may go to
--         destinations that have not answered quickly lately, failing: how many of these to destinations that have
--         failed, suspects: how many tasks under which two workers died this instance works on; absent: 0,
--         hosts: limits of hosts, see `_hosts.lua`; absent: none}
-- from    pending
-- to      running, with a new generation
-- answer  due_ms: ms until more can run (0: at once, -1: nothing known), leases: id, group, generation,
--         attempts, crashes, throttled, limit, proxy, spec, proven and failing ('1' or '', of a callback's
--         destination), waited_ms (since it was due; -1 if the lease is repeated), age_ms (since the callback became
--         pending), result of each; a callback's result has the fields RESULT of its download that are set
-- repeat  the same request is given what it was given before, as far as it still holds it
--
-- Groups take turns: the first in `ready` gives one task (see `next_task`) and moves to the end. A download that cannot
-- start because of its host is parked, and the turn ends too.

local kind, owner = call.kind, call.owner
local timers = key_timers(kind)
local unproven, failing = call.unproven, call.failing
local suspects = call.suspects or 0

-- Delay of a suspect that this instance may not run because it runs another suspect.
local SUSPECT_AGAIN_MS = 1000

-- What a callback needs of the download's result.
local RESULT = {
  'state', 'attempts', 'error', 'code', 'status', 'size', 'sha256', 'mime', 'image', 'retried',
  'etag', 'last_modified', 'content_type', 'final_url', 'not_modified', 'finished',
}

local function describe(id, group, generation, set, waited, spec)
  local task = redis.call('HMGET', key_task(kind, id), 'attempts', 'crashes', 'throttled', 'since')
  local record = redis.call('HMGET', key_group(kind, group), 'limit', 'proxy')
  local result, since = {}, task[4]
  if kind == 'callback' then
    local values = redis.call('HMGET', key_task('download', id), unpack(RESULT))
    for i, value in ipairs(values) do
      if value then
        result[#result + 1] = RESULT[i]
        result[#result + 1] = value
      end
    end
    since = since or values[#RESULT]
  end
  return {
    'id', id, 'group', group, 'generation', generation, 'attempts', task[1] or '0',
    'crashes', task[2] or '0', 'throttled', task[3] or '0', 'limit', record[1] or '1', 'proxy', record[2] or '',
    'spec', spec, 'proven', set == key_ready(kind) and '1' or '', 'failing', set == key_failing() and '1' or '',
    'waited_ms', waited, 'age_ms', now - (tonumber(since or nil) or now), 'result', result,
  }
end

local excepted = {}
for _, group in ipairs(call.last) do excepted[group] = 'last' end
for _, group in ipairs(call.never) do excepted[group] = 'never' end

-- The next group of a set, if the call may get one.
local function first_of(set)
  if set ~= key_ready(kind) then
    if unproven < 1 or set == key_failing() and failing < 1 then return nil end
    return redis.call('ZRANGE', set, 0, 0)[1]
  end
  local last
  for _, group in ipairs(redis.call('ZRANGE', set, 0, #call.last + #call.never)) do
    if not excepted[group] then return group end
    if excepted[group] == 'last' then last = last or group end
  end
  return last
end

-- The sets take turns, so that none delays another. If each call is for one task, the time decides which set is first.
local next_set = now

-- The next group, the key of its set, and what `next_set` becomes.
local function next_group()
  local sets = READY_SETS[kind]
  for number = next_set, next_set + #sets - 1 do
    local set = sets[number % #sets + 1]
    local group = first_of(set)
    if group then return group, set, number + 1 end
  end
end

local function due_ms()
  if next_group() then return 0 end
  local first = redis.call('ZRANGE', timers, 0, 0, 'WITHSCORES')
  if not first[2] then return -1 end
  return math.max(0, tonumber(first[2]) - now)
end

local leases = {}
local memo = redis.call('GET', key_memo(kind, owner))
if memo and string.match(memo, '^%S+') == call.request then
  for id, generation in string.gmatch(memo, ' (%w+):(%d+)') do
    local holder, group, host = claim(kind, id, owner, generation)
    if holder == 'held' then
      -- The lease starts again, because the holder counts from this request.
      redis.call('ZREM', key_leases(kind), id)
      redis.call('ZADD', key_leases(kind), now + call.lease_ms, id)
      prolong_visit(host, id)
      leases[#leases + 1] = describe(id, group, generation, ready_set(kind, group), -1,
        redis.call('GET', key_job(id)))
    end
  end
  redis.call('PEXPIRE', key_memo(kind, owner), call.lease_ms)
  return {'due_ms', due_ms(), 'leases', leases}
end

-- Bounded, so that a call is short even if many groups fall due at once; due_ms 0 makes the caller ask again.
for _, group in ipairs(redis.call('ZRANGEBYSCORE', timers, '-inf', now, 'LIMIT', 0, call.count + 64)) do
  redis.call('ZREM', timers, group)
  join_ready(kind, group)
end

local granted, turns = {call.request}, 0
while #leases < call.count and turns < 2 * call.count + 16 do
  local group, set, after = next_group()
  if not group then break end
  turns, next_set = turns + 1, after
  redis.call('ZREM', set, group)
  local queue, running = key_queue(kind, group), key_running(kind, group)
  local head = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
  local record = redis.call('HMGET', key_group(kind, group), 'limit', unpack(GATE))
  local id, due, urgent = next_task(kind, group, head)
  local not_before
  if id and due <= now and opens(unpack(record, 2)) <= now and redis.call('SCARD', running) < tonumber(record[1] or '1') then
    local spec = redis.call('GET', key_job(id))
    local host = call.hosts and spec and cjson.decode(spec).host
    local task = key_task(kind, id)
    local former = redis.call('HMGET', task, 'generation', 'crashes')
    local suspect = tonumber(former[2] or '0') >= SUSPECT_CRASHES
    local starts = not suspect or suspects < 1
    if not starts then
      local priority = kind == 'download' and redis.call('HGET', task, 'priority')
      enqueue(kind, id, group, now + SUSPECT_AGAIN_MS, priority)
    elseif host then
      starts, not_before = enter_host(host, id, group, due, spec)
    end
    if starts then
      redis.call('ZREM', queue, id)
      if urgent then redis.call('ZREM', key_urgent(group), id) end
    end
    if starts and spec then
      -- At least the time: a generation does not come twice, also where a failover has lost the last lease.
      local generation = string.format('%.0f', math.max(tonumber(former[1] or '0') + 1, now))
      if suspect then suspects = suspects + 1 end
      redis.call('HSET', task, 'state', 'running', 'owner', owner, 'group', group, 'started', now,
        'generation', generation, 'due', due)
      redis.call('HINCRBY', task, 'deliveries', 1)
      if host then redis.call('HSET', task, 'host', host) end
      redis.call('SADD', running, id)
      note_start(key_group(kind, group), tonumber(head[2]), spec, unpack(record, 2))
      redis.call('ZADD', key_leases(kind), now + call.lease_ms, id)
      if set ~= key_ready(kind) then unproven = unproven - 1 end
      if set == key_failing() then failing = failing - 1 end
      leases[#leases + 1] = describe(id, group, generation, set, now - due, spec)
      granted[#granted + 1] = id .. ':' .. generation
    end
  end
  if not_before then
    redis.call('ZADD', timers, not_before, group)
  else
    place(kind, group)
  end
end
for _, group in ipairs(touched_order) do place(group[1], group[2]) end

if #leases > 0 then
  redis.call('SET', key_memo(kind, owner), table.concat(granted, ' '), 'PX', call.lease_ms)
end
-- No wake-up is published: an instance that got due_ms 0 asks again. An instance that sleeps was told that no task can run,
-- and the script that changes this publishes a wake-up.
return {'due_ms', due_ms(), 'leases', leases}
