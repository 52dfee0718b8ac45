-- backlog: what waits, in numbers, and the callback destinations with the most.
--
-- KEYS    1 base of the shard
-- ARGV    1 {queues: of how many queues of each kind tasks are summed, destinations: how many at the most, and in how
--         many aggregations the oldest download is looked for, failures: of how many failed callbacks, those that are
--         kept longest, the destinations are counted}
-- from    any
-- to      the same
-- answer  now (ms), oldest (when the first download was due that waits for a slot alone, ms; 0: none), failed
--         (callbacks), download and callback: pending, queues, next (when the first timer is due, ms; 0: none) of each;
--         destinations: name, pending, running, limit, due (of the first pending callback, ms; 0: none) of each;
--         failed_to: name and number of failed callbacks of each destination, in turn; job_groups: how many groups of
--         jobs, sealed: how many of them are sealed and not complete
-- repeat  harmless

-- Pending and running tasks of a queue, from its score in `queues`.
local function counts(score)
  local tasks = math.floor(tonumber(score))
  local running = math.floor((tonumber(score) - tasks) * 1000000 + 0.5)
  return tasks - running, running
end

local function waiting(kind)
  local pending = 0
  local rows = redis.call('ZRANGE', key_queues(kind), 0, call.queues - 1, 'REV', 'WITHSCORES')
  for i = 2, #rows, 2 do pending = pending + counts(rows[i]) end
  local first = redis.call('ZRANGE', key_timers(kind), 0, 0, 'WITHSCORES')
  return {'pending', pending, 'queues', redis.call('ZCARD', key_queues(kind)), 'next', first[2] or '0'}
end

-- When the first download was due of those that wait for a slot; 0: none waits. Of the aggregations with the most.
local function oldest_due()
  local oldest = 0
  if redis.call('EXISTS', key_paused()) == 1 then return oldest end
  for _, queue in ipairs(redis.call('ZRANGE', key_queues('download'), 0, call.destinations - 1, 'REV')) do
    local record = redis.call('HMGET', key_queue_record('download', queue), 'paused', 'cooling')
    local due = tonumber(redis.call('ZRANGE', key_pending('download', queue), 0, 0, 'WITHSCORES')[2])
    local waits = due and due <= now and record[1] ~= '1' and tonumber(record[2] or '0') <= now
    if waits and (oldest == 0 or due < oldest) then oldest = due end
  end
  return oldest
end

local destinations = {}
local rows = redis.call('ZRANGE', key_queues('callback'), 0, call.destinations - 1, 'REV', 'WITHSCORES')
for i = 1, #rows, 2 do
  local name = rows[i]
  local pending, running = counts(rows[i + 1])
  local first = redis.call('ZRANGE', key_pending('callback', name), 0, 0, 'WITHSCORES')
  destinations[#destinations + 1] = {
    'name', name, 'pending', pending, 'running', running,
    'limit', redis.call('HGET', key_queue_record('callback', name), 'limit') or '1', 'due', first[2] or '0',
  }
end

-- There is no index by destination: the destination is read from each failed callback's task.
local failed_to, place_of = {}, {}
local failed = redis.call('ZRANGE', key_failed(), '+inf', now, 'BYSCORE', 'REV', 'LIMIT', 0, call.failures)
for _, id in ipairs(failed) do
  local name = redis.pcall('HGET', key_task('callback', id), 'group')
  if type(name) == 'string' then
    local place = place_of[name] or #failed_to + 1
    place_of[name] = place
    failed_to[place], failed_to[place + 1] = name, (failed_to[place + 1] or 0) + 1
  end
end

return {
  'now', now, 'oldest', oldest_due(), 'failed', redis.call('ZCOUNT', key_failed(), now, '+inf'),
  'download', waiting('download'), 'callback', waiting('callback'), 'destinations', destinations,
  'failed_to', failed_to, 'job_groups', redis.call('ZCARD', key_job_groups()),
  'sealed', redis.call('ZCOUNT', key_job_groups(), '-inf', now + GROUP_LOOK_MS),
}
