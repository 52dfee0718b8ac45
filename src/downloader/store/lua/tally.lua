-- tally: failed downloads or callbacks, counted by aggregation and reason, the newest first.
--
-- KEYS    1 base of the shard
-- ARGV    1 {which: 'failed callbacks' | 'failed downloads', count: how many are read, score and id: of the last one
--         before, '' for none}
-- from    any
-- to      the same
-- answer  score and id: of the last one read, '' at the end, failures: queue, code, error, jobs: how many, newest: when
--         the last one failed (ms), id: of that one, of each aggregation and reason
-- repeat  harmless

local callbacks = call.which == 'failed callbacks'
local rows = read_on(callbacks and key_failed() or key_failed_downloads(), true)
local failures, place_of = {}, {}
for i = 1, #rows, 2 do
  local download = redis.pcall('HMGET', key_task('download', rows[i]), 'group', 'code', 'state', 'finished', 'error',
    'reaping')
  local state, finished, reason = download[3], download[4], download[5]
  if callbacks then
    state, finished, reason = unpack(redis.pcall('HMGET', key_task('callback', rows[i]), 'state', 'finished', 'error'))
  end
  -- An earlier version leaves a job here that was retried.
  if state == 'failed' and not download[6] then
    local code = callbacks and '' or download[2] or ''
    local queue = download[1] or ''
    local name = cjson.encode({queue, code, reason or ''})
    local place = place_of[name]
    if not place then
      place = #failures + 1
      place_of[name] = place
      failures[place] = {'queue', queue, 'code', code, 'error', reason or '', 'jobs', 0, 'newest', '0', 'id', rows[i]}
    end
    local failure = failures[place]
    failure[8] = failure[8] + 1
    if (tonumber(finished or nil) or 0) > tonumber(failure[10]) then failure[10], failure[12] = finished, rows[i] end
  end
end
local more = #rows == 2 * call.count
return {'score', more and rows[#rows] or '', 'id', more and rows[#rows - 1] or '', 'failures', failures}
