-- failed: of some finished jobs, those whose callback has failed.
--
-- KEYS    1 base of the shard
-- ARGV    1 {count: how many finished jobs are looked at, score and id: of the last one before, '' for none}
-- from    any
-- to      the same
-- answer  score and id: of the last one looked at, '' at the end, jobs: id, group, finished (ms), error of each
-- repeat  harmless

local key = key_reap()
local start = call.id ~= '' and redis.call('ZRANK', key, call.id)
if start then
  start = start + 1
else
  -- It has gone meanwhile: those of the same time come again, which is better than not at all.
  start = call.id == '' and 0 or redis.call('ZCOUNT', key, '-inf', '(' .. call.score)
end
local rows = redis.call('ZRANGE', key, start, start + call.count - 1, 'WITHSCORES')
local jobs = {}
for i = 1, #rows, 2 do
  local task = redis.call('HMGET', key_task('callback', rows[i]), 'state', 'finished', 'error')
  local download = redis.call('HMGET', key_task('download', rows[i]), 'group', 'reaping')
  if task[1] == 'failed' and not download[2] then
    jobs[#jobs + 1] = {'id', rows[i], 'group', download[1], 'finished', task[2], 'error', task[3] or ''}
  end
end
local more = #rows == 2 * call.count
return {'score', more and rows[#rows] or '', 'id', more and rows[#rows - 1] or '', 'jobs', jobs}
