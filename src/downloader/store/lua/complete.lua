-- complete: a group of jobs is complete in all shards of a Cluster, and its callback becomes pending.
--
-- KEYS    1 base of the shard of its name
-- ARGV    1 {name, counts: the fields of the callback}
-- from    sealed in all shards, with no unfinished job in any
-- to      complete
-- answer  1
-- repeat  1, nothing changed

complete_job_group(call.name, call.counts)
place_touched()
return 1
