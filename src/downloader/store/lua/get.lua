-- get: everything about one job, at one moment.
--
-- KEYS    1 base of the shard
-- ARGV    1 {id}
-- from    any
-- to      the same
-- answer  spec, download and callback: the fields of its tasks, or ended: the record of an ended job, and keep_until:
--         ms or '' while nothing ends it; nothing for no such job
-- repeat  harmless

-- Reads from a task; a key of another type counts as an empty one.
local function read(kind, command, ...)
  local fields = redis.pcall(command, key_task(kind, call.id), ...)
  return fields.err and {} or fields
end

local spec = stored_job(call.id)
if not spec then
  local ended = redis.call('HGET', key_ended(), call.id)
  if not ended then return {} end
  return {'ended', ended, 'keep_until', redis.call('ZSCORE', key_reap_ended(), call.id) or ''}
end
local download = read('download', 'HMGET', 'state', 'finished')
local state = read('callback', 'HMGET', 'state')[1]
local callback = read('callback', 'HGETALL')
local keep_until = redis.call('ZSCORE', key_reap(), call.id)
if download[1] == 'succeeded' and not keep_until and not state then
  callback = {'state', 'pending', 'due', download[2]}
end
return {
  'spec', spec,
  'download', read('download', 'HGETALL'),
  'callback', callback,
  'keep_until', keep_until or '',
}
