-- submit: new jobs enter as pending downloads.
--
-- KEYS    1 base of the shard
-- ARGV    per job: id, aggregation, limit, proxy, spec, idempotency digest or '', body digest
-- from    (no job)
-- to      download pending
-- answer  per job: {'new' | 'repeated' | 'conflict', id}
-- repeat  a known id is answered 'new' and not enqueued again

local IDEMPOTENCY_MS = 24 * 3600 * 1000
local answers = {}

for i = 1, #ARGV, 7 do
  local id, group, limit, proxy, spec = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local digest, body = ARGV[i + 5], ARGV[i + 6]
  local why = 'new'
  if digest ~= '' then
    local seen = redis.call('GET', key_idempotency(digest))
    if seen then
      local seen_id, seen_body = string.match(seen, '^(%S+) (.*)$')
      if seen_id ~= id then
        why = seen_body == body and 'repeated' or 'conflict'
        id = seen_id
      end
    end
  end
  if why == 'new' and redis.call('EXISTS', key_job(id)) == 0 then
    redis.call('SET', key_job(id), spec)
    if digest ~= '' then
      redis.call('SET', key_idempotency(digest), id .. ' ' .. body, 'PX', IDEMPOTENCY_MS)
    end
    local record = key_group('download', group)
    -- The proxy is fixed when the aggregation is first seen; the newest job's limit applies.
    if redis.call('EXISTS', record) == 0 then
      redis.call('HSET', record, 'limit', limit, 'proxy', proxy)
    else
      redis.call('HSET', record, 'limit', limit)
    end
    redis.call('ZADD', key_queue('download', group), now, id)
    touch('download', group)
  end
  answers[#answers + 1] = {why, id}
end

place_touched()
return answers
