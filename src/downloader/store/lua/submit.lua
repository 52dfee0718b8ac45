-- submit: new jobs enter as pending downloads.
--
-- KEYS    1 base of the shard
-- ARGV    1 {own: see `is_own_next`, absent: none}, then per job {id, queue: its aggregation, limit, rate and
--         delay: absent if it names none, proxy, spec, idempotency: digest or '',
--         values: digest of the job, body: digest of its text, which earlier versions kept,
--         permitted: the one proxy that it may find its aggregation to have, absent: any, due: not before this
--         time (ms), priority: absent for 0, token: absent for none,
--         quota: of the token, the most of each of QUOTAS, each absent: no bound; absent: not counted,
--         job_group: of the job, absent: none}
-- from    (no job)
-- to      download pending
-- answer  per job: {'new' | 'repeated' | 'conflict', id} or {'proxied', the proxy that is not permitted} or
--         {'over_quota', one of QUOTAS} or {'sealed', id}: its group takes no more jobs
-- repeat  a known id is answered 'new' and not enqueued again

local IDEMPOTENCY_MS = 24 * 3600 * 1000
local answers = {}

-- What a job of a token with a quota adds to what the token has.
local function added_by(item)
  local opens_aggregation = redis.call('HEXISTS', key_queue_record('download', item.queue), 'token') == 0
  local opens_group = item.job_group and redis.call('EXISTS', key_job_group(item.job_group)) == 0
  return {jobs = 1, bytes = #item.spec, aggregations = opens_aggregation and 1 or 0, groups = opens_group and 1 or 0}
end

for item in items() do
  local id, queue = item.id, item.queue
  local why = 'new'
  if item.idempotency ~= '' then
    local seen = redis.call('GET', key_idempotency(item.idempotency))
    if seen then
      local seen_id, seen_job = string.match(seen, '^(%S+) (.*)$')
      if seen_id ~= id then
        why = (seen_job == item.values or seen_job == item.body) and 'repeated' or 'conflict'
        id = seen_id
      end
    end
  end
  local record = key_queue_record('download', queue)
  local fields = redis.call('HMGET', record, 'proxy', 'asked_limit', 'asked_rate', 'asked_delay')
  local proxy = fields[1]
  local known = why ~= 'new' or redis.call('EXISTS', key_job(id)) == 1 or redis.call('HEXISTS', key_ended(), id) == 1
  local added = not known and item.quota and added_by(item)
  local over = added and over_quota(item.token, item.quota, added)
  if not known and item.permitted and (proxy or '') ~= '' and proxy ~= item.permitted then
    why, id = 'proxied', proxy
  elseif not known and item.job_group and redis.pcall('HGET', key_job_group(item.job_group), 'sealed') then
    why = 'sealed'
  elseif over then
    why, id = 'over_quota', over
  elseif not known then
    redis.call('SET', key_job(id), item.spec)
    if item.idempotency ~= '' then
      redis.call('SET', key_idempotency(item.idempotency), id .. ' ' .. item.values, 'PX', IDEMPOTENCY_MS)
    end
    -- The first job of an aggregation fixes the proxy. For other fields the newest job that names a value counts,
    -- unless an operator has set a value.
    for i, name in ipairs(ADJUSTABLE) do
      if item[name] then redis.call('HSET', record, fields[i + 1] and 'asked_' .. name or name, item[name]) end
    end
    redis.call('HSETNX', record, 'proxy', item.proxy)
    if item.token then
      note_token(item.token)
      belong(record, item.token, item.quota)
      if item.quota then count_job(id, item.token) end
    end
    redis.call('PERSIST', record)
    if proxy and proxy ~= item.proxy then redis.call('HSET', key_task('download', id), 'proxy', proxy) end
    if item.priority then redis.call('HSET', key_task('download', id), 'priority', item.priority) end
    if item.job_group then
      -- With a damaged record of the group the job runs all the same, uncounted.
      local of_group = key_job_group(item.job_group)
      if added and added.groups == 1 then count_job_group(item.job_group, item.token) end
      redis.pcall('HINCRBY', of_group, 'jobs', 1)
      redis.pcall('HSETNX', of_group, 'first_at', now)
      redis.pcall('ZADD', key_members(item.job_group), now, id)
      redis.call('ZADD', key_job_groups(), 'NX', now + GROUP_IDLE_MS, item.job_group)
    end
    enqueue('download', id, queue, math.max(now, item.due), item.priority)
    touch('download', queue)
  end
  answers[#answers + 1] = {why, id}
end

place_touched()
return answers
