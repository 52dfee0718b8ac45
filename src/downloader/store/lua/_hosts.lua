-- Limits of hosts; loaded behind `_lib.lua`.
--
-- If they are configured, a lease call has `hosts`: the digest of the table of limits, which is in `host_limits`. A
-- download then has a place at the URL's host from its lease to its end, and a host has a record like an aggregation's
-- (cooldown, last start).
--
-- A download must wait while its host is full or the host's gap or cooldown is not over. It then stays in the queue of
-- its aggregation, due at a later time, and is also in `parked`. When the host has a free place, a parked download is
-- made due. Meanwhile the aggregation continues with its next job.

-- Most parked downloads per host and aggregation. Further downloads stay in the queue until there are fewer, so that a
-- large backlog costs nothing.
local MAX_PARKED = 1000

-- When a parked download tries again without being made due: the first of an aggregation after `ASK_AGAIN_MS`, plus
-- `ASK_AGAIN_STEP_MS` per download that waits for the host, at most `ASK_AGAIN_MAX_MS`; the others later. Only needed
-- if the download that was made due did not start.
local ASK_AGAIN_MS, ASK_AGAIN_STEP_MS, ASK_AGAIN_MAX_MS = 1000, 10, 30000

-- How many aggregations are examined for one that can start a download at a host. An aggregation that cannot is removed
-- from `waiting`, so that it is examined only once. It is added again when one of its downloads ends at the host or
-- tries again.
local CANDIDATES = 500

-- How long a table of limits is kept without use, or half as long: it is prolonged when half of the time is over.
local LIMITS_TTL_MS = 3600 * 1000

-- Whether the store has the call's table of limits; stores the table if the call brings it. An empty table has the
-- digest '' and is not stored.
local function has_limits()
  if call.hosts == '' then return true end
  local limits = key_host_limits(call.hosts)
  local left = redis.call('PTTL', limits)
  if left <= 0 then
    if not call.limits then return false end
    redis.call('DEL', limits)
    for name, text in pairs(call.limits) do redis.call('HSET', limits, name, text) end
  end
  if left < LIMITS_TTL_MS / 2 then redis.call('PEXPIRE', limits, LIMITS_TTL_MS) end
  return true
end

-- The limits of a host: for the name, else for the nearest parent domain, else for `*`.
local function limits_of(host)
  if call.hosts == '' then return {} end
  local names, domain = {host}, string.match(host, '%.(.+)$')
  while domain do
    names[#names + 1] = '*.' .. domain
    domain = string.match(domain, '%.(.+)$')
  end
  names[#names + 1] = '*'
  for _, limits in ipairs(redis.call('HMGET', key_host_limits(call.hosts), unpack(names))) do
    if limits then return cjson.decode(limits) end
  end
  return {}
end

-- Changes the due time of a pending download.
local function postpone(id, queue, due)
  enqueue('download', id, queue, due, redis.call('HGET', key_task('download', id), 'priority'))
end

-- Notes in a host's record the time of the planned start, so that only one start is planned for that time.
local function plan(record, from)
  redis.call('HSET', record, 'next', from)
  redis.call('PEXPIRE', record, HOST_TTL_MS)
end

-- Adds an aggregation at the end of those that wait for a host.
local function queue_up(waiting, queue)
  local last = redis.call('ZRANGE', waiting, -1, -1, 'WITHSCORES')
  redis.call('ZADD', waiting, 'NX', (tonumber(last[2]) or 0) + 1, queue)
  redis.call('PEXPIRE', waiting, HOST_TTL_MS)
end

-- Makes the next parked download of a host due, at the time at which the host may be asked again. The host is not full.
local function call_next(host)
  local waiting, record = key_waiting(host), key_host(host)
  local queues = redis.call('ZRANGE', waiting, 0, CANDIDATES - 1)
  if #queues == 0 then return end
  local from = math.ceil(opens(unpack(redis.call('HMGET', record, unpack(GATE)))))
  if from > now and tonumber(redis.call('HGET', record, 'next') or '0') == from then return end
  for _, queue in ipairs(queues) do
    local fields = redis.call('HMGET', key_queue_record('download', queue), 'limit', 'paused', unpack(GATE))
    local running = redis.call('SCARD', key_running('download', queue))
    local free = fields[2] ~= '1' and running < (tonumber(fields[1]) or 1)
    if free and opens(unpack(fields, 3)) <= math.max(now, from) then
      local parked, tasks = key_parked(host, queue), key_pending('download', queue)
      local first
      repeat
        first = redis.call('ZPOPMIN', parked)
        -- A cancelled download is not in the queue any more.
      until not first[1] or redis.call('ZSCORE', tasks, first[1])
      redis.call('ZREM', waiting, queue)
      if redis.call('EXISTS', parked) == 1 then queue_up(waiting, queue) end
      if first[1] then
        postpone(first[1], queue, math.max(tonumber(first[2]) % LEVEL, from))
        if from > now then plan(record, from) end
        touch('download', queue)
        return
      end
    else
      redis.call('ZREM', waiting, queue)
    end
  end
end

-- Prolongs the place of a running download at its host, if any; also a place that has expired.
local function prolong_visit(host, id)
  if host then redis.call('ZADD', key_visits(host), now + call.lease_ms, id) end
end

-- Gives up a download's place at its host, if any.
local function leave_host(id, queue, host)
  if not host then return end
  redis.call('ZREM', key_visits(host), id)
  if redis.call('EXISTS', key_parked(host, queue)) == 1 then queue_up(key_waiting(host), queue) end
  call_next(host)
end

-- Frees slot and place of a cancelled download, when its work or its lease has ended.
local function free_cancelled(id, queue)
  redis.call('ZREM', key_stopping(), id .. ' ' .. queue)
  redis.call('SREM', key_running('download', queue), id)
  leave_host(id, queue, task_fields('download', id, 'host')[1])
  touch('download', queue)
end

-- Gives a download, due since `due`, a place at its host, or parks it. Returns whether the download may start. If too
-- many downloads of the queue are parked, also returns the time before which the queue starts no task.
local function enter_host(host, id, queue, due, spec)
  local limits, visits, record, parked = limits_of(host), key_visits(host), key_host(host), key_parked(host, queue)
  local gate = redis.call('HMGET', record, unpack(GATE))
  gate[2] = limits.rate or false
  gate[3] = math.max(limits.delay or 0, tonumber(redis.call('GET', key_crawl(host)) or '0'))
  local from = math.ceil(opens(unpack(gate)))
  -- Remove the places of dead instances.
  redis.call('ZREMRANGEBYSCORE', visits, '-inf', now)
  local free = not limits.limit or redis.call('ZCARD', visits) < limits.limit
  if free and from <= now then
    if redis.call('ZREM', parked, id) == 1 and redis.call('EXISTS', parked) == 0 then
      redis.call('ZREM', key_waiting(host), queue)
    end
    redis.call('ZADD', visits, now + call.lease_ms, id)
    if gap_of(gate[2], gate[3], gate[5]) > 0 then
      redis.call('HSET', record, 'rate', gate[2] or '', 'delay', gate[3])
      note_start(record, due, spec, unpack(gate))
      redis.call('PEXPIRE', record, HOST_TTL_MS)
      if not limits.limit or redis.call('ZCARD', visits) < limits.limit then call_next(host) end
    end
    return true
  end
  if free and tonumber(redis.call('HGET', record, 'next') or '0') ~= from then
    plan(record, from)
    redis.call('ZREM', parked, id)
    postpone(id, queue, from)
    return false
  end
  local count = redis.call('ZCARD', parked)
  local again = math.max(ASK_AGAIN_MS, ASK_AGAIN_STEP_MS * count)
  if count >= MAX_PARKED and not redis.call('ZSCORE', parked, id) then
    return false, math.max(now, from) + again
  end
  -- An estimate of all parked downloads of the host: each aggregation counts as if it had the same number.
  local all = (count + 1) * redis.call('ZCARD', key_waiting(host))
  again = math.max(again, math.min(ASK_AGAIN_STEP_MS * all, ASK_AGAIN_MAX_MS))
  local priority = tonumber(redis.call('HGET', key_task('download', id), 'priority') or nil) or 0
  redis.call('ZADD', parked, 'NX', (MAX_PRIORITY - priority) * LEVEL + due, id)
  -- Only the first download of an aggregation tries again soon, so that hundreds of full hosts cost little.
  if redis.call('ZRANK', parked, id) > 0 then again = ASK_AGAIN_MAX_MS + ASK_AGAIN_STEP_MS * count end
  queue_up(key_waiting(host), queue)
  redis.call('PEXPIRE', parked, HOST_TTL_MS)
  postpone(id, queue, math.max(now, from) + again)
  return false
end
