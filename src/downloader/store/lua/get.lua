-- get: everything about one job, at one moment.
--
-- KEYS    1 base of the shard
-- ARGV    1 {id}
-- from    any
-- to      the same
-- answer  spec, download and callback: the fields of its tasks, keep_until: ms or '' while nothing ends it;
--         nothing for no such job
-- repeat  harmless

local spec = redis.call('GET', key_job(call.id))
if not spec then return {} end
return {
  'spec', spec,
  'download', redis.call('HGETALL', key_task('download', call.id)),
  'callback', redis.call('HGETALL', key_task('callback', call.id)),
  'keep_until', redis.call('ZSCORE', key_reap(), call.id) or '',
}
