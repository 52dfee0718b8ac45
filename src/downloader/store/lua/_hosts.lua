-- Limits of hosts; loaded behind `_lib.lua`.
--
-- While they are on, a lease call has `hosts`: the limits by host or pattern. A download then has a place at its
-- job's host from its lease to its end, and a host has a record like an aggregation's (cooldown, last start). A
-- download whose host is full or must not be asked yet waits: it stays in its aggregation's queue, due at a later
-- time, and is in `parked` too, from where it is made due as soon as its host has a place. Its aggregation goes on
-- with the next job.

-- Downloads of an aggregation that wait for one host at the most. Those behind them are not looked at until there
-- are fewer, so that a large backlog costs nothing.
local MAX_PARKED = 1000

-- When a download that waits asks its host again although it was not made due: the first of its aggregation after at
-- least this long, and so much longer for each that waits for the host, to this time at the most; the others later.
-- Only needed where the one whose turn it was did not start.
local ASK_AGAIN_MS, ASK_AGAIN_STEP_MS, ASK_AGAIN_MAX_MS = 1000, 10, 30000

-- How many aggregations are looked at for one that can start a download at a host. Those that cannot are no longer
-- called, so that they are looked at once: they wait again when one of them ends there or asks by itself.
local CANDIDATES = 500

-- The limits of a host: those of its name, else of the nearest domain above it, else of `*`.
local function limits_of(host)
  local found, rest = call.hosts[host], host
  while not found and rest do
    rest = string.match(rest, '%.(.+)$')
    found = rest and call.hosts['*.' .. rest]
  end
  return found or call.hosts['*'] or {}
end

-- Changes when a pending download is due.
local function postpone(id, group, due)
  enqueue('download', id, group, due, redis.call('HGET', key_task('download', id), 'priority'))
end

-- Notes in a host's record for which time a start is planned, so that no second one is.
local function plan(record, from)
  redis.call('HSET', record, 'next', from)
  redis.call('PEXPIRE', record, HOST_TTL_MS)
end

-- Puts an aggregation behind the others that wait for a host.
local function queue_up(waiting, group)
  local last = redis.call('ZRANGE', waiting, -1, -1, 'WITHSCORES')
  redis.call('ZADD', waiting, 'NX', (tonumber(last[2]) or 0) + 1, group)
end

-- Makes the next download that waits for a host due, as soon as the host may be asked again. The host is not full.
local function call_next(host)
  local waiting, record = key_waiting(host), key_host(host)
  local groups = redis.call('ZRANGE', waiting, 0, CANDIDATES - 1)
  if #groups == 0 then return end
  local from = math.ceil(opens(unpack(redis.call('HMGET', record, unpack(GATE)))))
  if from > now and tonumber(redis.call('HGET', record, 'next') or '0') == from then return end
  for _, group in ipairs(groups) do
    local found = redis.call('HMGET', key_group('download', group), 'limit', 'paused', unpack(GATE))
    local running = redis.call('SCARD', key_running('download', group))
    if found[2] ~= '1' and running < (tonumber(found[1]) or 1) and opens(unpack(found, 3)) <= math.max(now, from) then
      local parked, queue = key_parked(host, group), key_queue('download', group)
      local first
      repeat
        first = redis.call('ZPOPMIN', parked)
        -- One that was cancelled is in no queue any more.
      until not first[1] or redis.call('ZSCORE', queue, first[1])
      redis.call('ZREM', waiting, group)
      if redis.call('EXISTS', parked) == 1 then queue_up(waiting, group) end
      if first[1] then
        postpone(first[1], group, math.max(tonumber(first[2]) % LEVEL, from))
        if from > now then plan(record, from) end
        touch('download', group)
        return
      end
    else
      redis.call('ZREM', waiting, group)
    end
  end
end

-- Prolongs a download's place at its host, if it has one; a place that had ended is taken again, as its download runs.
local function prolong_visit(host, id)
  if host then redis.call('ZADD', key_visits(host), now + call.lease_ms, id) end
end

-- Gives up a download's place at its host, if it has one.
local function leave_host(id, group, host)
  if not host then return end
  redis.call('ZREM', key_visits(host), id)
  if redis.call('EXISTS', key_parked(host, group)) == 1 then queue_up(key_waiting(host), group) end
  call_next(host)
end

-- The work on a cancelled download has ended, or its lease: its slot and its place are free.
local function free_cancelled(id, group)
  redis.call('ZREM', key_stopping(), id .. ' ' .. group)
  redis.call('SREM', key_running('download', group), id)
  leave_host(id, group, redis.call('HGET', key_task('download', id), 'host'))
  touch('download', group)
end

-- Gives a download a place at its host, or lets it wait. `due`: since when it has waited.
-- The first result: whether it may start. The second, if it may not: when its group may give its next task, if too
-- many wait.
local function enter_host(host, id, group, due, spec)
  local limits, visits, record, parked = limits_of(host), key_visits(host), key_host(host), key_parked(host, group)
  local pace = redis.call('HMGET', record, unpack(GATE))
  pace[2] = limits.rate
  pace[3] = math.max(limits.delay or 0, tonumber(redis.call('GET', key_crawl(host)) or '0'))
  local from = math.ceil(opens(unpack(pace, 1, 4)))
  -- Holders that have died.
  redis.call('ZREMRANGEBYSCORE', visits, '-inf', now)
  local free = not limits.limit or redis.call('ZCARD', visits) < limits.limit
  if free and from <= now then
    if redis.call('ZREM', parked, id) == 1 and redis.call('EXISTS', parked) == 0 then
      redis.call('ZREM', key_waiting(host), group)
    end
    redis.call('ZADD', visits, now + call.lease_ms, id)
    if gap_of(pace[2], pace[3]) > 0 then
      redis.call('HSET', record, 'rate', pace[2] or '', 'delay', pace[3])
      note_start(record, due, spec, unpack(pace, 1, 4))
      redis.call('PEXPIRE', record, HOST_TTL_MS)
      if not limits.limit or redis.call('ZCARD', visits) < limits.limit then call_next(host) end
    end
    return true
  end
  if free and tonumber(redis.call('HGET', record, 'next') or '0') ~= from then
    plan(record, from)
    redis.call('ZREM', parked, id)
    postpone(id, group, from)
    return false
  end
  local count = redis.call('ZCARD', parked)
  local again = math.max(ASK_AGAIN_MS, ASK_AGAIN_STEP_MS * count)
  if count >= MAX_PARKED and not redis.call('ZSCORE', parked, id) then
    return false, math.max(now, from) + again
  end
  -- As if each aggregation had as many.
  local all = (count + 1) * redis.call('ZCARD', key_waiting(host))
  again = math.max(again, math.min(ASK_AGAIN_STEP_MS * all, ASK_AGAIN_MAX_MS))
  local priority = tonumber(redis.call('HGET', key_task('download', id), 'priority') or '0')
  redis.call('ZADD', parked, 'NX', (MAX_PRIORITY - priority) * LEVEL + due, id)
  -- So that hundreds of full hosts cost little, only one download of each aggregation asks soon.
  if redis.call('ZRANK', parked, id) > 0 then again = ASK_AGAIN_MAX_MS + ASK_AGAIN_STEP_MS * count end
  queue_up(key_waiting(host), group)
  redis.call('PEXPIRE', parked, HOST_TTL_MS)
  redis.call('PEXPIRE', key_waiting(host), HOST_TTL_MS)
  postpone(id, group, math.max(now, from) + again)
  return false
end
