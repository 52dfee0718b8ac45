-- What becomes of a job when its download or callback has ended; loaded behind `_lib.lua`.

-- The last line of the record of a job that was given to a reaper.
local REAPING = '\nR'

local end_job
do -- a script may have 200 local names
  -- Letters of the common fields of a record (see `ended.py`).
  local LETTERS = {
    download = {finished = 'f', started = 's', size = 'z', mime = 'm'}, callback = {finished = 'F', started = 'S'},
  }

  -- Fields that nobody needs any more. `record` has the final URL, without its query values.
  local LEFT_OUT = {
    due = true, final_url = true, generation = true, group = true, host = true, owner = true, priority = true, proxy = true,
    retried = true, settled = true, sha256 = true, swept = true, throttled = true,
  }

  -- Values of fields that are left out.
  local DEFAULTS = {state = 'succeeded', attempts = '1', deliveries = '1', crashes = '0', status = '200'}

  -- Replaces the job whose download, and callback if any, has succeeded by a short record, kept for `keep_ms`. `record` has
  -- the lines that the holder has made.
  function end_job(id, record, keep_ms)
    local marks, lines, ended = '', {record}, nil
    for _, kind in ipairs({'download', 'callback'}) do
      local flat, task = redis.pcall('HGETALL', key_task(kind, id)), {}
      for i = 1, #flat, 2 do task[flat[i]] = flat[i + 1] end
      if task.state then marks = marks .. mark_of(task.settled or '') end
      ended = ended or tonumber(task.finished)
      for name, value in pairs(task) do
        local letter, is_time = LETTERS[kind][name], name == 'started' or name == 'finished'
        if value == '' or LEFT_OUT[name] or value == DEFAULTS[name] or is_time and not (tonumber(value) and ended) then
          -- Nobody needs it, or it was damaged.
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

-- After the end of a download: the callback becomes pending in the group `callback`, or ('' for no callback) the job is
-- kept for `keep_ms`. The callback of a success has no record of its own before it is leased.
local function conclude(id, item, keep_ms)
  local callback = item.callback
  local bytes = item.counted and redis.call('HGET', key_task('download', id), 'counted')
  if bytes then
    redis.call('HDEL', key_task('download', id), 'counted')
    count_usage(item.counted, -1, -(tonumber(bytes) or 0), 0)
  end
  if callback == '' then
    if item.record then end_job(id, item.record, keep_ms) else redis.call('ZADD', key_reap(), now + keep_ms, id) end
    return
  end
  redis.call('HSETNX', key_group('callback', callback), 'limit', item.limit)
  if item.token then redis.call('HSETNX', key_group('callback', callback), 'token', item.token) end
  if item.state ~= 'succeeded' then
    redis.call('HSET', key_task('callback', id), 'state', 'pending', 'due', now, 'group', callback)
  end
  redis.call('ZADD', key_queue('callback', callback), now, id)
  touch('callback', callback)
end
