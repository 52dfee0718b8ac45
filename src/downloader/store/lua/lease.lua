-- lease: due tasks become running, in the hands of one instance for a bounded time.
--
-- KEYS    1 base of the shard
-- ARGV    1 kind, 2 owner, 3 request, 4 how many, 5 lease in ms
-- from    pending
-- to      running, with a new generation
-- answer  {ms until more can run (0: at once, -1: nothing known), leases}; a lease is {id, group,
--         generation, attempts, crashes, limit, proxy, spec, and for callbacks the download's state,
--         attempts, error, code, status, size, sha256, mime, image}
-- repeat  the same request is given what it was given before, as far as it still holds it
--
-- Groups take turns: the one at the head of the line gives one task and goes to its end.

local kind, owner, request = ARGV[1], ARGV[2], ARGV[3]
local count, lease_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local ready, timers = key_ready(kind), key_timers(kind)

local function describe(id, group, generation)
  local task = redis.call('HMGET', key_task(kind, id), 'attempts', 'crashes')
  local record = redis.call('HMGET', key_group(kind, group), 'limit', 'proxy')
  local lease = {
    id, group, generation, task[1] or '0', task[2] or '0', record[1] or '1', record[2] or '',
    redis.call('GET', key_job(id)),
  }
  if kind == 'callback' then
    local result = redis.call('HMGET', key_task('download', id), 'state', 'attempts', 'error', 'code',
      'status', 'size', 'sha256', 'mime', 'image')
    for field = 1, 9 do lease[8 + field] = result[field] or '' end
  end
  return lease
end

local function more()
  if redis.call('ZCARD', ready) > 0 then return 0 end
  local first = redis.call('ZRANGE', timers, 0, 0, 'WITHSCORES')
  if not first[2] then return -1 end
  return math.max(0, tonumber(first[2]) - now)
end

local leases = {}
local memo = redis.call('GET', key_memo(kind, owner))
if memo and string.match(memo, '^%S+') == request then
  for id, generation in string.gmatch(memo, ' (%w+):(%d+)') do
    local whose, group = claim(kind, id, owner, generation)
    if whose == 'held' then
      -- Whoever asks again counts the lease from then on.
      redis.call('ZREM', key_leases(kind), id)
      redis.call('ZADD', key_leases(kind), now + lease_ms, id)
      leases[#leases + 1] = describe(id, group, generation)
    end
  end
  redis.call('PEXPIRE', key_memo(kind, owner), lease_ms)
  return {more(), leases}
end

-- Bounded, so that a call stays short however many fall due at once; the answer 0 asks for another.
for _, group in ipairs(redis.call('ZRANGEBYSCORE', timers, '-inf', now, 'LIMIT', 0, count + 64)) do
  redis.call('ZREM', timers, group)
  join_ready(kind, group)
end

local granted = {request}
local turns = 2 * count + 16
while #leases < count and turns > 0 do
  turns = turns - 1
  local group = redis.call('ZPOPMIN', ready)[1]
  if not group then break end
  local queue, running = key_queue(kind, group), key_running(kind, group)
  local head = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
  local limit = tonumber(redis.call('HGET', key_group(kind, group), 'limit') or '1')
  if head[1] and tonumber(head[2]) <= now and redis.call('SCARD', running) < limit then
    local id = head[1]
    redis.call('ZREM', queue, id)
    if redis.call('EXISTS', key_job(id)) == 1 then
      local task = key_task(kind, id)
      local generation = tostring(redis.call('HINCRBY', task, 'generation', 1))
      redis.call('HSET', task, 'state', 'running', 'owner', owner, 'group', group, 'started', now)
      redis.call('HINCRBY', task, 'deliveries', 1)
      redis.call('HDEL', task, 'due')
      redis.call('SADD', running, id)
      redis.call('ZADD', key_leases(kind), now + lease_ms, id)
      leases[#leases + 1] = describe(id, group, generation)
      granted[#granted + 1] = id .. ':' .. generation
    end
  end
  place(kind, group)
end

if #leases > 0 then
  redis.call('SET', key_memo(kind, owner), table.concat(granted, ' '), 'PX', lease_ms)
end
-- Nobody is woken: whoever is asked to come back (0) does so, and the others sleep because they saw
-- an empty line, which only a script that publishes can fill.
return {more(), leases}
