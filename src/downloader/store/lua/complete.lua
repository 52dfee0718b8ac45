-- complete: a group of jobs is complete in all shards of a Cluster, and its callback becomes pending.
--
-- KEYS    1 base of the group's home shard
-- ARGV    1 {name, counts: the fields of the callback, mark: the record's `sealed`}
-- from    sealed in all shards, with no unfinished job in any; not reopened since
-- to      complete
-- answer  1
-- repeat  1, nothing changed

if redis.call('HGET', key_job_group(call.name), 'sealed') == call.mark then
  complete_job_group(call.name, call.counts)
end
place_touched()
return 1
