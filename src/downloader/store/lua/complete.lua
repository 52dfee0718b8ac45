-- complete: a group of jobs is complete in all shards of a Cluster, and its callback becomes pending.
--
-- KEYS    1 base of the shard of its name
-- ARGV    1 {name, counts: the fields of the callback, mark: its `sealed`}
-- from    sealed in all shards, with no unfinished job in any; not reopened since
-- to      complete
-- answer  1
-- repeat  1, nothing changed

if redis.call('HGET', key_job_group(call.name), 'sealed') == call.mark then complete_job_group(call.name, call.counts) end
place_touched()
return 1
