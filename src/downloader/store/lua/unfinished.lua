-- unfinished: some jobs of an aggregation whose download waits or runs, those that wait first.
--
-- KEYS    1 base of the shard
-- ARGV    1 {queue: the aggregation, count: how many at the most}
-- from    any
-- to      the same
-- answer  more ('1' if there may be others, or ''), jobs: id and spec of each, one after the other
-- repeat  harmless

-- A job may be as large as a request; as in `list`.
local MAX_BYTES = 4 * 1024 * 1024

local ids = redis.call('ZRANGE', key_pending('download', call.queue), 0, call.count - 1)
local more = #ids == call.count
if not more then
  for _, id in ipairs(redis.call('SMEMBERS', key_running('download', call.queue))) do
    -- A cancelled download keeps its slot until its holder has stopped.
    if redis.pcall('HGET', key_task('download', id), 'state') == 'running' then ids[#ids + 1] = id end
  end
end
local jobs, bytes = {}, 0
for _, id in ipairs(ids) do
  if #jobs == 2 * call.count or bytes >= MAX_BYTES then
    more = true
    break
  end
  local spec = stored_job(id)
  if spec then
    bytes = bytes + #spec
    jobs[#jobs + 1], jobs[#jobs + 2] = id, spec
  end
end
return {'more', more and '1' or '', 'jobs', jobs}
