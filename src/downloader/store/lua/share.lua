-- share: a job that is about to store a file under a key with its digest is counted among the sharers of the file.
--
-- KEYS    1 base of the shard of the job or of the file
-- ARGV    1 {id, digest: of the file, absent: the job is in another shard, file: see `sharers`, absent: it is in
--         another shard, ours: whether the caller, told 'foreign', has seen that no file is there}
-- from    download not over
-- to      the same
-- answer  'shared'; 'foreign': as before, and the file that may be there is not to be deleted; 'wait': as before, and
--         the file is being deleted; 'over': the download is over; 'many': the job has shared too many files
-- repeat  the same answer, nothing changed

-- A job shares a second file if the first attempt failed after this and the next one got other bytes.
local MOST_DIGESTS, DIGEST_LENGTH = 100, 64
-- The sharer that stands for whoever has stored the file before the jobs that are counted.
local FOREIGN = ''

if call.digest then
  local state, digests = unpack(task_fields('download', call.id, 'state', 'digests'))
  if state ~= 'running' and state ~= 'pending' then return 'over' end
  digests = digests or ''
  if not string.find(digests, call.digest, 1, true) then
    if #digests >= MOST_DIGESTS * DIGEST_LENGTH then return 'many' end
    redis.call('HSET', key_task('download', call.id), 'digests', digests .. call.digest)
  end
end
if not call.file then return 'shared' end

local sharers = key_sharers(call.file)
if redis.call('EXISTS', sharers) == 0 then redis.call('SADD', sharers, FOREIGN) end
redis.call('SADD', sharers, call.id)
if call.ours then redis.call('SREM', sharers, FOREIGN) end
if redis.call('EXISTS', key_deleting(call.file)) == 1 then return 'wait' end
return redis.call('SISMEMBER', sharers, FOREIGN) == 1 and 'foreign' or 'shared'
