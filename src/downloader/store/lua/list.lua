-- list: some jobs: finished ones, those whose download or callback failed, those whose download runs, those of an
-- aggregation that wait, or the unfinished ones of a group of jobs. These three are in the order of their time, others
-- the newest first.
--
-- KEYS    1 base of the shard
-- ARGV    1 {which: 'finished' | 'failed callbacks' | 'failed downloads' | 'running' | 'pending' | 'group',
--         name: the aggregation of those that wait, or the group of jobs, count: how many are read, score and id: of
--         the last one before, '' for none}
-- from    any
-- to      the same
-- answer  score and id: of the last one read, '' at the end, jobs: id, queue, state, callback: its state or '',
--         finished and failed: when the download ended and the callback failed (ms or ''), error, code: of the
--         download, destination: the callback's queue or '', spec, of each, or id and ended: its record
-- repeat  harmless

-- A job may be as large as a request. After this many bytes of them the rest is left to the next call.
local MAX_BYTES = 4 * 1024 * 1024

-- The rows of `reap` together with those of `reap_ended`, the newest first; with equal times those of `reap_ended`
-- first.
local function with_ended(others)
  local key = key_reap_ended()
  local ended, rows, i = read_on(key, true), {}, 1
  if call.id ~= '' and redis.call('ZSCORE', key_reap(), call.id) == call.score then
    local start = redis.call('ZCOUNT', key, call.score, '+inf')
    ended = redis.call('ZREVRANGE', key, start, start + call.count - 1, 'WITHSCORES')
  end
  local j = 1
  while #rows < 2 * call.count and (ended[i] or others[j]) do
    if ended[i] and (not others[j] or tonumber(ended[i + 1]) >= tonumber(others[j + 1])) then
      rows[#rows + 1], rows[#rows + 2] = ended[i], ended[i + 1]
      i = i + 2
    else
      rows[#rows + 1], rows[#rows + 2] = others[j], others[j + 1]
      j = j + 2
    end
  end
  return rows
end

local key = key_reap()
if call.which == 'failed callbacks' then key = key_failed() end
if call.which == 'failed downloads' then key = key_failed_downloads() end
if call.which == 'running' then key = key_leases('download') end
if call.which == 'pending' then key = key_pending('download', call.name) end
if call.which == 'group' then key = key_members(call.name) end
local rows = read_on(key, call.which ~= 'running' and call.which ~= 'pending' and call.which ~= 'group')
if call.which == 'finished' then rows = with_ended(rows) end
local jobs, bytes, last = {}, 0, 0
while last < #rows and bytes < MAX_BYTES do
  local id = rows[last + 1]
  last = last + 2
  local download = redis.pcall('HMGET', key_task('download', id), 'state', 'group', 'finished', 'error', 'reaping',
    'code')
  local callback = redis.pcall('HMGET', key_task('callback', id), 'state', 'finished', 'error', 'group')
  local failed = callback[1] == 'failed'
  local spec = stored_job(id)
  if spec and not download[5] then
    bytes = bytes + #spec
    local queue = download[2] or call.which == 'group' and decoded(spec).aggr_id or call.name
    jobs[#jobs + 1] = {
      'id', id, 'queue', queue, 'state', download[1] or 'pending',
      'callback', callback[1] or '', 'finished', download[3] or '', 'failed', failed and callback[2] or '',
      'error', failed and callback[3] or download[4] or '', 'code', download[6] or '', 'destination', callback[4] or '',
      'spec', spec,
    }
  elseif not spec then
    local ended = redis.call('HGET', key_ended(), id)
    if ended and string.sub(ended, -2) ~= REAPING then
      bytes = bytes + #ended
      jobs[#jobs + 1] = {'id', id, 'ended', ended}
    end
  end
end
local more = last < #rows or #rows == 2 * call.count
return {'score', more and rows[last] or '', 'id', more and rows[last - 1] or '', 'jobs', jobs}
