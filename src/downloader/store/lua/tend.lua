-- tend: groups of jobs that are due for a check are repaired, completed or deleted.
--
-- KEYS    1 base of the shard
-- ARGV    1 {}, then per group {name}
-- from    any
-- to      the same; if all jobs have ended, the callback is pending; a group that has been complete, or unsealed
--         without jobs, for long is deleted
-- answer  names of the groups for which all shards of a Cluster have to be asked
-- repeat  nothing, because the groups are no longer due

-- Shortest time until an instance asks the shards of a Cluster again. The pause grows while nothing changes: the shard
-- that has unfinished jobs makes the group due when its last job ends.
local AGAIN_MS = 5 * 1000
-- Jobs that one call counts: about 10 ms.
local COUNTED = 1000

-- The state of a job's download if the job has ended, its callback included, or is gone; else nil.
local function end_of(id)
  if redis.call('EXISTS', key_job(id)) == 0 then
    return redis.call('HEXISTS', key_ended(), id) == 1 and 'succeeded' or 'failed'
  end
  return redis.call('ZSCORE', key_reap(), id) and (task_fields('download', id, 'state')[1] or 'failed')
end

local asked = {}
for item in items() do
  local name = item.name
  local record, members = key_job_group(name), key_members(name)
  local due = tonumber(redis.call('ZSCORE', key_job_groups(), name) or nil)
  if due and due <= now then
    mend_job_group(name)
    -- A group is not complete before its oldest job has ended, so only the oldest job is examined.
    for _ = 1, COUNTED do
      local id = redis.call('ZRANGE', members, 0, 0)[1]
      local state = id and end_of(id)
      if not state then break end
      leave_job_group(name, id, state)
    end
    local sealed, completed, last_at, token =
      unpack(redis.call('HMGET', record, 'sealed', 'completed', 'last_at', 'token_of_quota'))
    local since, ended = tonumber(completed or nil) or 0, tonumber(last_at or nil) or 0
    local unfinished = redis.call('EXISTS', members) == 1
    if completed and since + GROUP_KEPT_MS > now then
      redis.call('ZADD', key_job_groups(), since + GROUP_KEPT_MS, name)
    elseif completed or not (sealed or unfinished or ended + GROUP_IDLE_MS > now) then
      if token then count_usage(token, {groups = -1}) end
      redis.call('DEL', record, members)
      redis.call('ZREM', key_job_groups(), name)
    elseif sealed and in_cluster then
      local unchanged_ms = math.max(now - math.max(tonumber(sealed) or 0, ended), AGAIN_MS)
      local wait_ms = unfinished and GROUP_LOOK_MS or math.min(unchanged_ms, GROUP_LOOK_MS)
      redis.call('ZADD', key_job_groups(), now + wait_ms, name)
      asked[#asked + 1] = name
    elseif sealed then
      redis.call('ZADD', key_job_groups(), now + GROUP_LOOK_MS, name)
      check_job_group(name)
    else
      redis.call('ZADD', key_job_groups(), now + GROUP_IDLE_MS, name)
    end
  end
end
place_touched()
return asked
