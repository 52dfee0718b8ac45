-- group: groups of jobs are defined, sealed, reopened or described, as far as they are in this shard.
--
-- KEYS    1 base of the shard
-- ARGV    1 {}, then per group {name; spec, id, callback, limit, token: of the job that carries the callback (absent:
--         unchanged); seal: true to accept no more jobs; completed: true if the group is complete in its home shard;
--         reopen: true to accept jobs in a complete group again, with `id` for its next callback; mark: `sealed` in the
--         home shard, which names the seal that this call is about (absent: a new seal); quota, token_of_quota: of the
--         caller, as for `submit` (absent: a new group does not count)}
-- from    any; a complete group is only changed by `reopen`
-- to      the same; with `seal` and without unfinished jobs in any shard, the callback becomes pending; a new group
--         that exceeds the quota is not created
-- answer  per group: the fields of the record without `spec`, as names and values; unfinished: number of jobs;
--         callback_state: of a complete group in its home shard ('': no callback, or its job is deleted); empty if
--         there is no such group
-- repeat  harmless

local function callback_state(id)
  local state = task_fields('callback', id, 'state')[1]
  if state then return state end
  if redis.call('EXISTS', key_job(id)) == 1 then return 'pending' end
  return redis.call('HEXISTS', key_ended(), id) == 1 and 'succeeded' or ''
end

local answers = {}
for item in items() do
  local name, record = item.name, key_job_group(item.name)
  mend_job_group(name)
  local opens = item.quota and redis.call('EXISTS', record) == 0
  local over = opens and over_quota(item.token_of_quota, item.quota, {groups = 1})
  -- A late call about a seal from before the group was reopened changes nothing.
  local reopened = tonumber(redis.call('HGET', record, 'reopened') or nil) or 0
  local mark = tonumber(item.mark or nil) or math.max(now, reopened + 1)
  local done = over or mark <= reopened or redis.call('HEXISTS', record, 'completed') == 1
  if opens and not over then count_job_group(name, item.token_of_quota) end
  if not done and item.spec then
    redis.call('HSETNX', record, 'id', item.id)
    redis.call('HSET', record, 'spec', item.spec, 'callback', item.callback, 'limit', item.limit, 'token', item.token)
  end
  local newly = not done and item.seal and redis.call('HSETNX', record, 'sealed', mark) == 1
  if item.reopen and mark > reopened then
    redis.call('HDEL', record, 'sealed', 'completed')
    redis.call('HSET', record, 'reopened', mark)
    if redis.call('HEXISTS', record, 'id') == 1 then redis.call('HSET', record, 'id', item.id) end
    redis.call('ZADD', key_job_groups(), now + GROUP_IDLE_MS, name)
  elseif not done and item.completed then
    redis.call('HSET', record, 'completed', now)
    redis.call('DEL', key_members(name))
    redis.call('ZADD', key_job_groups(), now + GROUP_KEPT_MS, name)
  elseif newly then
    redis.call('ZADD', key_job_groups(), now, name)
    check_job_group(name)
  elseif not done and item.spec then
    redis.call('ZADD', key_job_groups(), 'NX', now + GROUP_IDLE_MS, name)
  end
  local answer = {}
  if redis.call('EXISTS', record) == 1 then
    answer = redis.call('HGETALL', record)
    for i = 1, #answer, 2 do
      if answer[i] == 'spec' then answer[i + 1] = '' end
    end
    answer[#answer + 1], answer[#answer + 2] = 'unfinished', redis.call('ZCARD', key_members(name))
    local id, completed = unpack(redis.call('HMGET', record, 'id', 'completed'))
    answer[#answer + 1], answer[#answer + 2] = 'callback_state', id and completed and callback_state(id) or ''
  end
  answers[#answers + 1] = answer
end
place_touched()
return answers
