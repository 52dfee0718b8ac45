"""Mutants of the store but for leases and pace: name, file below `src`, old line, new line, tests."""

from __future__ import annotations

STORE = "downloader/store"
OF_EMBEDDED = "tests/store/test_embedded.py"
OF_CLUSTER = "tests/faults/test_cluster_faults.py"
OF_STORE = (
    "tests/store/test_submitting.py tests/store/test_transitions.py tests/store/test_fleet_facts.py"
    " tests/store/test_lifecycle.py tests/store/test_model.py"
)

ROWS = (
    (
        "loop: the error of a lost connection ends the process",
        "downloader/store/loop.py",
        "return future is not None and not isinstance(future, asyncio.Task)",
        "return False",
        "tests/store/test_loop.py",
    ),
    (
        "loop: the error of a task is forgotten",
        "downloader/store/loop.py",
        "return future is not None and not isinstance(future, asyncio.Task)",
        "return True",
        "tests/store/test_loop.py",
    ),
    (
        "fields: a deadline before not_before is accepted",
        "downloader/api/parse.py",
        "if request.deadline and request.deadline <= request.not_before:",
        "if False:",
        "tests/api/test_download_fields.py",
    ),
    (
        "lists: a time without an offset is local time",
        "downloader/api/views.py",
        "if found.tzinfo is not None:",
        "if True:",
        "tests/api/test_listed.py",
    ),
    (
        "intake: wide characters count as one byte",
        "downloader/api/submit.py",
        "keep(max(size, memory_of(submission)))",
        "keep(size)",
        "tests/api/test_download_bodies.py",
    ),
    (
        "server: each connection keeps 64 KiB",
        "downloader/api/limits.py",
        "share = self.unread_bytes // max(1, len(self.ordinary))",
        "share = PIECE_BYTES",
        "tests/api/test_server.py",
    ),
    (
        "encryption: jobs are stored in the clear",
        f"{STORE}/arguments.py",
        "spec.to_json(seal),",
        "spec.to_json(),",
        "tests/store/test_sealing.py",
    ),
    (
        "encryption: a job without its key is worked on",
        "downloader/service/work.py",
        """        if lease.spec.sealed:
            return Outcome(""",
        """        if False:
            return Outcome(""",
        "tests/store/test_sealing.py",
    ),
    (
        "lists: of other tenants' jobs",
        "downloader/api/listed.py",
        "        if allows(each.aggr_id)\n",
        "        if True\n",
        "tests/api/test_listed.py",
    ),
    (
        "lists: a page begins with the last one's end",
        f"{STORE}/lua/list.lua",
        "redis.call('ZRANK', key, call.id) + 1",
        "redis.call('ZRANK', key, call.id)",
        "tests/api/test_listed.py",
    ),
    (
        "cluster: one silent shard fails the call",
        f"{STORE}/shards.py",
        "if errors and not answers and not some:",
        "if errors:",
        OF_CLUSTER,
    ),
    (
        "cluster: a silent shard is waited for again and again",
        f"{STORE}/redis.py",
        "if shard in self._silent:",
        "if False:",
        OF_CLUSTER,
    ),
    (
        "scale: a lease reads a whole queue",
        f"{STORE}/lua/lease.lua",
        "redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')",
        "redis.call('ZRANGE', queue, 0, -1, 'WITHSCORES')",
        "tests/store/test_scale.py",
    ),
    (
        "durability: WAITAOF's answer is not looked at",
        f"{STORE}/redis.py",
        "if reached[0] < 1:",
        "if False:",
        "tests/store/test_durability.py",
    ),
    (
        "durability: WAIT's answer is not looked at",
        f"{STORE}/redis.py",
        "elif reached < self._replicas:",
        "elif False:",
        "tests/store/test_durability.py",
    ),
    (
        "embedded: nothing is synced",
        f"{STORE}/embedded.py",
        '"everysec"',
        '"no"',
        OF_EMBEDDED,
    ),
    (
        "embedded: files that other users can read",
        f"{STORE}/embedded.py",
        "            umask=0o077,\n",
        "",
        OF_EMBEDDED,
    ),
    (
        "embedded: as much memory as there is",
        f"{STORE}/embedded.py",
        '"--maxmemory", str(max_memory)',
        '"--maxmemory", "0"',
        OF_EMBEDDED,
    ),
    (
        "embedded: deletes jobs when it is full",
        f"{STORE}/embedded.py",
        '"noeviction"',
        '"allkeys-lru"',
        OF_EMBEDDED,
    ),
    (
        "embedded: outlives its parent",
        f"{STORE}/with_parent.py",
        "        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)\n",
        "        pass\n",
        "tests/e2e/test_run.py tests/cli/test_fetch.py",
    ),
    (
        "api: the document is made in the event loop",
        "downloader/api/openapi.py",
        "await trio.to_thread.run_sync(body)",
        "body()",
        "tests/api/test_openapi.py -k outside",
    ),
    (
        "sentinel: connections stay",
        f"{STORE}/cluster.py",
        "            await self._sentinel.aclose()",
        "            pass",
        "tests/e2e/test_sentinel.py -k leaves",
    ),
)
