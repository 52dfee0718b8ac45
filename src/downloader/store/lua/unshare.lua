-- unshare: a job that is being deleted leaves a shared file; after the last one the file is deleted.
--
-- KEYS    1 base of the shard of the file
-- ARGV    1 {id, file: see `sharers`, mark: names the caller, hold_ms: how long nobody else stores or deletes the file,
--         deleted: whether the file is gone, as the caller was told 'delete'}
-- from    given to a reaper
-- to      the same
-- answer  'kept': the job is none of the sharers, and the file is left alone; 'delete': the job stays a sharer until
--         the file is gone; 'wait': another caller deletes the file, or this one has taken too long
-- repeat  'kept' again; 'delete' again for the same mark, nothing changed

local FOREIGN = ''
local sharers, deleting = key_sharers(call.file), key_deleting(call.file)
if redis.call('SISMEMBER', sharers, call.id) == 0 then return 'kept' end
if call.deleted then
  if redis.call('GET', deleting) ~= call.mark then return 'wait' end
  redis.call('DEL', deleting)
  redis.call('SREM', sharers, call.id)
  return 'kept'
end
local others = redis.call('SCARD', sharers) - 1
if others == 0 then
  redis.call('SET', deleting, call.mark, 'NX', 'PX', call.hold_ms)
  return redis.call('GET', deleting) == call.mark and 'delete' or 'wait'
end
redis.call('SREM', sharers, call.id)
-- Without a job that shares it, nothing is to be known of a file that is not to be deleted.
if others == 1 then redis.call('SREM', sharers, FOREIGN) end
return 'kept'
