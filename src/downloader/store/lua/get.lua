-- get: everything about one job, at one moment.
--
-- KEYS    1 base of the shard
-- ARGV    1 id
-- from    any
-- to      the same
-- answer  {spec, fields of the download's task, fields of the callback's} or {} for no such job
-- repeat  harmless

local spec = redis.call('GET', key_job(ARGV[1]))
if not spec then return {} end
return {
  spec,
  redis.call('HGETALL', key_task('download', ARGV[1])),
  redis.call('HGETALL', key_task('callback', ARGV[1])),
}
