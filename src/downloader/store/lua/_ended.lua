-- Changes of a job whose download or callback has ended; loaded behind `_hosts.lua`.

-- The last line of the record of a job that was given to a reaper.
local REAPING = '\nR'

-- All fields of a task's record by name; none of a record of a wrong type.
local function all_fields(kind, id)
  local flat, task = redis.pcall('HGETALL', key_task(kind, id)), {}
  for i = 1, #flat, 2 do task[flat[i]] = flat[i + 1] end
  return task
end

local end_job
do -- a script may have 200 local names
  -- Letters of the common fields of a record (see `ended.py`).
  local LETTERS = {
    download = {finished = 'f', started = 's', size = 'z', mime = 'm'}, callback = {finished = 'F', started = 'S'},
  }

  -- Fields that are no longer needed. `record` has the final URL, without its query values.
  local LEFT_OUT = {
    counted_as = true, due = true, final_url = true, generation = true, group = true, host = true, owner = true,
    priority = true, proxy = true, retried = true, settled = true, sha256 = true, swept = true, throttled = true,
  }

  -- Values of fields that are left out.
  local DEFAULTS = {state = 'succeeded', attempts = '1', deliveries = '1', crashes = '0', status = '200'}

  -- Replaces a job that cannot be retried by a short record, kept for `keep_ms`: the download, and callback if any, has
  -- succeeded, or the download was cancelled. `record` has the lines that the caller has made. `tasks`: the fields of
  -- both tasks.
  function end_job(id, record, keep_ms, tasks)
    local marks, lines, ended = '', {record}, nil
    for _, kind in ipairs({'download', 'callback'}) do
      local task = tasks[kind]
      if task.state then
        task.attempts, task.deliveries = task.attempts or '0', task.deliveries or '0'
      end
      if task.state then marks = marks .. mark_of(task.settled or '') end
      ended = ended or tonumber(task.finished)
      for name, value in pairs(task) do
        local letter, is_time = LETTERS[kind][name], name == 'started' or name == 'finished'
        if value == '' or LEFT_OUT[name] or value == DEFAULTS[name] or is_time and not (tonumber(value) and ended) then
          -- Not needed, or damaged.
        elseif letter then
          lines[#lines + 1] = letter .. (is_time and letter ~= 'f' and string.format('%d', value - ended) or value)
        else
          lines[#lines + 1] = (kind == 'download' and 'D' or 'C') .. name .. '=' .. string.gsub(value, '\n', '\r')
        end
      end
    end
    redis.call('DEL', key_job(id), key_task('download', id), key_task('callback', id))
    redis.call('HSET', key_ended(), id, marks .. '\n' .. table.concat(lines, '\n'))
    redis.call('ZADD', key_reap_ended(), now + keep_ms, id)
  end
end

local leave_job_group

-- After the end of a download: the callback becomes pending in the queue `callback`, or ('' for no callback) the job is
-- kept for `keep_ms`. The callback of a success has no record of its own before it is leased.
local function conclude(id, item, keep_ms)
  local callback = item.callback
  local bytes = item.counted and redis.call('HGET', key_task('download', id), 'counted')
  if bytes then
    redis.call('HDEL', key_task('download', id), 'counted')
    count_usage(item.counted, {jobs = -1, bytes = -(tonumber(bytes) or 0)})
  end
  if callback == '' then
    if item.job_group then leave_job_group(item.job_group, id, item.state or 'cancelled') end
    if item.record then
      end_job(id, item.record, keep_ms, {download = all_fields('download', id), callback = all_fields('callback', id)})
    else
      redis.call('ZADD', key_reap(), now + keep_ms, id)
    end
    return
  end
  redis.call('HSETNX', key_queue_record('callback', callback), 'limit', item.limit)
  if item.token then redis.call('HSETNX', key_queue_record('callback', callback), 'token', item.token) end
  if item.state ~= 'succeeded' then
    task_fields('callback', id, 'state')
    redis.call('HSET', key_task('callback', id), 'state', 'pending', 'due', now, 'group', callback)
  end
  redis.call('ZADD', key_pending('callback', callback), now, id)
  touch('callback', callback)
end

-- Groups of jobs that clients name, see `docs/design/groups.md`.

-- Deletes a group's record or members if the key has a wrong type.
local function mend_job_group(name)
  if type(redis.pcall('HLEN', key_job_group(name))) == 'table' then redis.call('DEL', key_job_group(name)) end
  if type(redis.pcall('ZCARD', key_members(name))) == 'table' then redis.call('DEL', key_members(name)) end
end

-- Counts a new group against the quota of a token, until the group is deleted.
local function count_job_group(name, token)
  redis.call('HSET', key_job_group(name), 'token_of_quota', token)
  count_usage(token, {groups = 1})
end

-- How long a complete group is kept (longer than its callback may take), and an unsealed group without unfinished jobs.
local GROUP_KEPT_MS, GROUP_IDLE_MS = 7 * 24 * 3600 * 1000, 30 * 24 * 3600 * 1000

-- Time between two looks at a sealed group. Needed because an earlier version of the service ends jobs without
-- counting.
local GROUP_LOOK_MS = 60 * 1000

local complete_job_group, check_job_group
do -- a script may have 200 local names
  -- Completes a group, and makes its callback, if any, pending like the callback of an ended job. `counts` are the sums
  -- over all shards, for the callback. A second call changes nothing.
  function complete_job_group(name, counts)
    local record = key_job_group(name)
    local spec, id, callback, limit, token =
      unpack(redis.call('HMGET', record, 'spec', 'id', 'callback', 'limit', 'token'))
    if redis.call('HSETNX', record, 'completed', now) == 0 then return end
    redis.call('ZADD', key_job_groups(), now + GROUP_KEPT_MS, name)
    if not spec then return end
    local completes = ',"completes":' .. cjson.encode(cjson.encode(counts)) .. '}'
    redis.call('SET', key_job(id), string.sub(spec, 1, -2) .. completes)
    -- `not_modified`: there is no file to look for.
    redis.call('HSET', key_task('download', id), 'state', 'succeeded', 'finished', now, 'group', name,
      'not_modified', '1')
    conclude(id, {callback = callback, limit = limit, token = token or nil, state = 'succeeded'}, 0)
  end

  -- Completes a sealed group without unfinished jobs. In a Cluster other shards may have unfinished jobs, so the group
  -- becomes due in `job_groups`, and an instance asks all shards.
  function check_job_group(name)
    local record = key_job_group(name)
    local fields = redis.pcall('HMGET', record, 'sealed', 'completed', 'jobs', 'succeeded', 'failed', 'cancelled',
      'first_at', 'last_at')
    if not fields[1] or fields[2] or redis.call('EXISTS', key_members(name)) == 1 then return end
    if in_cluster then
      redis.call('ZADD', key_job_groups(), now, name)
      return
    end
    complete_job_group(name, {
      jobs = tonumber(fields[3] or 0), succeeded = tonumber(fields[4] or 0), failed = tonumber(fields[5] or 0),
      cancelled = tonumber(fields[6] or 0), first_at = tonumber(fields[7] or 0), last_at = tonumber(fields[8] or 0),
    })
  end
end

-- Counts a job of a group that has ended, its callback included, by the state of the download. A second call for the
-- same job changes nothing. If the group's record is damaged, the job ends uncounted.
function leave_job_group(name, id, state)
  if redis.pcall('ZREM', key_members(name), id) ~= 1 then return end
  if state ~= 'succeeded' and state ~= 'cancelled' then state = 'failed' end
  redis.pcall('HINCRBY', key_job_group(name), state, 1)
  redis.pcall('HSET', key_job_group(name), 'last_at', now)
  check_job_group(name)
end
