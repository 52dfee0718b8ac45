-- retry: failed callbacks are sent again, or failed downloads run again from the start.
--
-- KEYS    1 base of the shard
-- ARGV    1 {kind: what is run again, request, limit: of a callback's group, limits: of groups of a type}, then per job {id}
-- from    callback failed; or download failed, callback terminal or none, and no other proxy in between
-- to      callback pending; or download pending and callback none
-- answer  per job: 'done' | 'unknown' | 'conflict'
-- repeat  the same request is answered 'done' and changes nothing

local kind = call.kind

local function retry(id)
  local spec = redis.call('GET', key_job(id))
  if not spec then return 'unknown' end

  local task = key_task(kind, id)
  local found = redis.call('HMGET', task, 'state', 'group', 'retried')
  local state, group, retried = found[1], found[2], found[3]
  if retried == call.request then return 'done' end
  if redis.call('HGET', key_task('download', id), 'reaping') then return 'conflict' end
  if state ~= 'failed' then return 'conflict' end

  if kind == 'download' then
    local callback = redis.call('HGET', key_task('callback', id), 'state')
    if callback == 'pending' or callback == 'running' then return 'conflict' end
    local asked, record = cjson.decode(spec), key_group(kind, group)
    -- The one that it was accepted for: who may submit elsewhere through any other may not take it there.
    local proxy = redis.call('HGET', task, 'proxy') or asked.aggr_proxy or ''
    local other = redis.call('HGET', record, 'proxy')
    if (other or '') ~= '' and other ~= proxy then return 'conflict' end
    -- The next callback goes on with the generations: a late holder of this one must not pass for its holder.
    local generation = redis.call('HGET', key_task('callback', id), 'generation')
    redis.call('DEL', key_task('callback', id))
    if generation then redis.call('HSET', key_task('callback', id), 'generation', generation) end
    if redis.call('HSETNX', record, 'limit', asked.aggr_limit) == 1 then
      if asked.aggr_rate then redis.call('HSET', record, 'rate', asked.aggr_rate) end
      if asked.aggr_delay then redis.call('HSET', record, 'delay', asked.aggr_delay) end
    end
    redis.call('HSETNX', record, 'proxy', proxy)
    redis.call('PERSIST', record)
    redis.call('ZREM', key_failed_downloads(), id)
  else
    redis.call('HSETNX', key_group(kind, group), 'limit', call.limits[string.match(group, '^%S*')] or call.limit)
  end

  redis.call('ZREM', key_reap(), id)
  redis.call('ZREM', key_failed(), id)
  redis.call('HDEL', task, 'finished', 'error', 'code', 'status', 'attempts', 'crashes', 'swept', 'throttled')
  redis.call('HSET', task, 'retried', call.request)
  requeue(kind, id, group, now)
  touch(kind, group)
  return 'done'
end

local answers = {}
for item in items() do answers[#answers + 1] = retry(item.id) end
place_touched()
return answers
