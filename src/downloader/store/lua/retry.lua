-- retry: somebody wants a failed callback sent again, or a failed download run again from the start.
--
-- KEYS    1 base of the shard
-- ARGV    1 id, 2 '1' for the download, 3 request, 4 limit of the callback's group
-- from    callback failed; or download failed and callback terminal or none
-- to      callback pending; or download pending and callback none
-- answer  'done' | 'unknown' | 'conflict'
-- repeat  the same request is answered 'done' and changes nothing

local id, download, request, limit = ARGV[1], ARGV[2] == '1', ARGV[3], ARGV[4]
local spec = redis.call('GET', key_job(id))
if not spec then return 'unknown' end

local kind = download and 'download' or 'callback'
local task, other = key_task(kind, id), key_task('callback', id)
local state = redis.call('HMGET', task, 'state', 'group', 'retried')
if state[3] == request then return 'done' end
if redis.call('HGET', key_task('download', id), 'reaping') then return 'conflict' end
if state[1] ~= 'failed' then return 'conflict' end
local group = state[2]

if download then
  local callback = redis.call('HGET', other, 'state')
  if callback == 'pending' or callback == 'running' then return 'conflict' end
  redis.call('DEL', other)
  local record = key_group(kind, group)
  if redis.call('EXISTS', record) == 0 then
    local asked = cjson.decode(spec)
    redis.call('HSET', record, 'limit', asked.aggr_limit, 'proxy', asked.aggr_proxy or '')
  end
else
  redis.call('HSETNX', key_group(kind, group), 'limit', limit)
end

redis.call('ZREM', key_reap(), id)
redis.call('HDEL', task, 'finished', 'error', 'code', 'status', 'attempts', 'crashes')
redis.call('HSET', task, 'retried', request)
requeue(kind, id, group, 0)
touch(kind, group)
place_touched()
return 'done'
