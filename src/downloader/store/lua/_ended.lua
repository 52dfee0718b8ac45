-- Records of jobs that have ended; loaded behind `_lib.lua`.

-- Letters of the common fields of a record (see `ended.py`).
local LETTERS = {
  download = {finished = 'f', started = 's', size = 'z', mime = 'm'}, callback = {finished = 'F', started = 'S'},
}

-- Fields that nobody needs any more.
local LEFT_OUT = {
  due = true, generation = true, group = true, host = true, owner = true, priority = true, proxy = true,
  retried = true, settled = true, sha256 = true, swept = true, throttled = true,
}

-- Values of fields that are left out.
local DEFAULTS = {state = 'succeeded', attempts = '1', deliveries = '1', crashes = '0', status = '200'}

-- The last line of the record of a job that was given to a reaper.
local REAPING = '\nR'

-- Replaces the job whose download, and callback if any, has succeeded by a short record, kept for `keep_ms`. `record` has
-- the lines that the holder has made.
local function end_job(id, record, keep_ms)
  local marks, lines, ended = '', {record}, nil
  for _, kind in ipairs({'download', 'callback'}) do
    local flat, task = redis.call('HGETALL', key_task(kind, id)), {}
    for i = 1, #flat, 2 do task[flat[i]] = flat[i + 1] end
    if task.state then marks = marks .. mark_of(task.settled or '') end
    ended = ended or task.finished
    for name, value in pairs(task) do
      local letter = LETTERS[kind][name]
      if value == '' or LEFT_OUT[name] or value == DEFAULTS[name] then
        -- Nobody needs it.
      elseif letter then
        local relative = letter ~= 'f' and (name == 'started' or name == 'finished')
        lines[#lines + 1] = letter .. (relative and string.format('%d', value - ended) or value)
      else
        lines[#lines + 1] = (kind == 'download' and 'D' or 'C') .. name .. '=' .. string.gsub(value, '\n', '\r')
      end
    end
  end
  redis.call('DEL', key_job(id), key_task('download', id), key_task('callback', id))
  redis.call('HSET', key_ended(), id, marks .. '\n' .. table.concat(lines, '\n'))
  redis.call('ZADD', key_reap_ended(), now + keep_ms, id)
end
