"""What is true of the keys of a store between two transitions, whatever the transitions were.

The records are read directly, and each number, set and index is counted again from what it stands for.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from downloader.model import Kind
from downloader.store import KEYS
from servers.raw_store import RawStore

LEVEL = 3e14
"""Distance of two priorities in `urgent`."""

PATTERNS = [(re.compile(re.sub("<[^>]*>", ".*", key.path)), key) for key in KEYS]

DUMP = """
  local reads = {
    string = {'GET'}, hash = {'HGETALL'}, set = {'SMEMBERS'}, zset = {'ZRANGE', 0, -1, 'WITHSCORES'},
  }
  local dump = {}
  for _, key in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
    local read = reads[redis.call('TYPE', key).ok]
    local value = redis.call(read[1], key, unpack(read, 2))
    dump[#dump + 1] = {string.sub(key, #ARGV[1] + 1), redis.call('PTTL', key), value}
  end
  return cjson.encode(dump)
"""


@dataclass
class Snapshot:
    """All keys of a store at one moment, by name behind the base."""

    values: dict[str, Any]
    ttls: dict[str, int]
    now_ms: int

    def zset(self, name: str) -> dict[str, float]:
        flat = self.values.get(name, [])
        return dict(zip(flat[::2], map(float, flat[1::2]), strict=True))

    def hash(self, name: str) -> dict[str, str]:
        flat = self.values.get(name, [])
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def members(self, name: str) -> set[str]:
        return set(self.values.get(name, []))

    def under(self, name: str) -> set[str]:
        """The last parameters of the keys that begin with a name."""
        return {key.removeprefix(f"{name}:") for key in self.values if key.startswith(f"{name}:")}


def snapshot(raw: RawStore, now_ms: int) -> Snapshot:
    rows = json.loads(raw.command("EVAL", DUMP, 0, raw.keys.base(0)))
    return Snapshot({row[0]: row[2] or [] for row in rows}, {row[0]: row[1] for row in rows}, now_ms)


def check(store: Snapshot) -> None:
    """Check everything below."""
    check_keys(store)
    check_jobs(store)
    for kind in Kind:
        check_tasks(store, kind)
        check_queues(store, kind)
    check_quotas(store)
    check_job_groups(store)
    check_hosts(store)


def check_keys(store: Snapshot) -> None:
    """Each key is in the table, and expires if the table says so."""
    for name in store.values.keys() - {"clock"}:
        kinds = [key for pattern, key in PATTERNS if pattern.fullmatch(name)]
        assert kinds, f"no such key: {name}"
        assert store.ttls[name] > 0 or any(not key.ttl for key in kinds), f"has no time to live: {name}"


def check_jobs(store: Snapshot) -> None:
    """Each job has a next step, and what refers to a job finds one."""
    jobs, ended = store.under("job"), store.hash("ended")
    reap, reap_ended = store.zset("reap"), store.zset("reap_ended")
    assert ended.keys() == reap_ended.keys(), "each short record is deleted some day"
    assert not jobs & ended.keys(), "a job has one record"
    assert reap.keys() <= jobs
    assert store.zset("failed").keys() <= jobs
    assert store.zset("failed_downloads").keys() <= jobs
    active: set[str] = set(reap)
    for kind in Kind:
        active |= store.zset(f"{kind}:leases").keys()
        for queue in store.under(f"{kind}:queue"):
            active |= store.zset(f"{kind}:queue:{queue}").keys()
    assert jobs <= active, f"lost: {jobs - active}"
    for job_id in store.zset("failed"):
        assert store.hash(f"callback:task:{job_id}").get("state") == "failed"
        assert "reaping" not in store.hash(f"download:task:{job_id}"), "counted, but nobody can send it again"
    for job_id in store.zset("failed_downloads"):
        assert store.hash(f"download:task:{job_id}").get("state") == "failed"


def check_tasks(store: Snapshot, kind: Kind) -> None:
    """A task waits in one queue, or has one slot and one lease, or is over."""
    jobs, leases, stopping = store.under("job"), store.zset(f"{kind}:leases"), store.zset("stopping")
    slots: Counter[str] = Counter()
    for queue in store.under(f"{kind}:running"):
        for job_id in store.members(f"{kind}:running:{queue}"):
            slots[job_id] += 1
            stops = kind is Kind.DOWNLOAD and f"{job_id} {queue}" in stopping
            assert (job_id in leases) is not stops, f"a slot without a lease: {job_id}"
            state = store.hash(f"{kind}:task:{job_id}").get("state")
            assert state == "running" if not stops else state in ("cancelled", None)
    assert all(count == 1 for count in slots.values())
    assert leases.keys() <= slots.keys(), "a lease without a slot"
    if kind is Kind.DOWNLOAD:
        assert {member.split(" ", 1)[0] for member in stopping} <= slots.keys()
    queued: dict[str, str] = {}
    for queue in store.under(f"{kind}:queue"):
        for job_id in store.zset(f"{kind}:queue:{queue}"):
            assert job_id not in queued, f"queued twice: {job_id}"
            queued[job_id] = queue
    assert not queued.keys() & slots.keys()
    assert queued.keys() <= jobs
    for job_id in store.under(f"{kind}:task"):
        state = store.hash(f"{kind}:task:{job_id}").get("state")
        assert job_id in jobs, f"a task without a job: {job_id}"
        assert (state == "running") is (job_id in leases)
        assert (job_id in queued) if state == "pending" else state is None or job_id not in queued


def check_queues(store: Snapshot, kind: Kind) -> None:
    """Each queue is counted, and is where lease calls and timers find it."""
    scores, timers = store.zset(f"{kind}:groups"), store.zset(f"{kind}:timers")
    sets = [f"{kind}:ready"] + (["unproven", "failing"] if kind is Kind.CALLBACK else [])
    ready = {queue: name for name in sets for queue in store.zset(name)}
    assert sum(len(store.zset(name)) for name in sets) == len(ready), "in two sets"
    working = store.under(f"{kind}:queue") | store.under(f"{kind}:running")
    assert working <= scores.keys() <= working | store.under(f"{kind}:group")
    assert ready.keys() | timers.keys() <= working
    for queue in working:
        pending = store.zset(f"{kind}:queue:{queue}")
        running = store.members(f"{kind}:running:{queue}")
        assert math.isclose(scores[queue], len(pending) + len(running) * 1.000001, abs_tol=1e-9)
        record = store.hash(f"{kind}:group:{queue}")
        if not pending or record.get("paused") == "1" or len(running) >= int(record.get("limit", 1)):
            assert queue not in ready
            assert queue not in timers
            continue
        due = max(min(pending.values()), opens(record))
        if due > store.now_ms:
            assert queue not in ready
            assert timers[queue] == math.ceil(due)
        else:
            assert queue in ready or timers[queue] <= store.now_ms, f"stuck: {queue}"
            assert ready.get(queue) != "failing" or queue in timers
    if kind is Kind.DOWNLOAD:
        check_priorities(store, working)


def opens(record: dict[str, str]) -> float:
    """The time before which a queue starts nothing."""
    rate, delay = float(record.get("rate") or 0), float(record.get("delay") or 0)
    gap = max(1000 / rate if rate else 0, delay * 1000)
    return max(float(record.get("cooling", 0)), float(record["started"]) + gap if "started" in record else 0)


def check_priorities(store: Snapshot, working: set[str]) -> None:
    """Exactly the queued downloads with a priority are in `urgent`, at their place."""
    assert store.under("urgent") <= working
    for queue in working:
        expected = {}
        for job_id, due in store.zset(f"download:queue:{queue}").items():
            if priority := store.hash(f"download:task:{job_id}").get("priority"):
                expected[job_id] = (9 - int(priority)) * LEVEL + due
        assert store.zset(f"urgent:{queue}") == expected


def check_quotas(store: Snapshot) -> None:
    """What counts against a token's quota is the sum of what is counted."""
    usage: dict[str, Counter[str]] = {token: Counter() for token in store.under("usage")}
    for job_id in store.under("download:task"):
        if counted := store.hash(f"download:task:{job_id}").get("counted"):
            token = json.loads(store.values[f"job:{job_id}"])["token"]
            usage.setdefault(token, Counter()).update(jobs=1, bytes=int(counted))
    for queue in store.under("download:group"):
        record = store.hash(f"download:group:{queue}")
        if "counted" in record:
            usage.setdefault(record["token"], Counter()).update(aggregations=1)
    for name in store.under("job_group"):
        if token := store.hash(f"job_group:{name}").get("token_of_quota"):
            usage.setdefault(token, Counter()).update(groups=1)
    for token, expected in usage.items():
        noted = {name: int(amount) for name, amount in store.hash(f"usage:{token}").items()}
        assert {name: amount for name, amount in noted.items() if amount} == dict(expected)


def check_job_groups(store: Snapshot) -> None:
    """Each group of jobs is looked at some day, and its members are the jobs that have not ended."""
    assert store.zset("job_groups").keys() == store.under("job_group")
    unfinished: dict[str, set[str]] = {}
    for job_id in store.under("job") - store.zset("reap").keys():
        name = json.loads(store.values[f"job:{job_id}"]).get("group")
        if name and "completed" not in store.hash(f"job_group:{name}"):
            unfinished.setdefault(name, set()).add(job_id)
    for name in store.under("job_group") | store.under("members") | unfinished.keys():
        assert store.zset(f"members:{name}").keys() == unfinished.get(name, set())
        record = store.hash(f"job_group:{name}")
        over = sum(int(record.get(end, 0)) for end in ("succeeded", "failed", "cancelled"))
        assert int(record.get("jobs", 0)) == over + len(unfinished.get(name, set()))


def check_hosts(store: Snapshot) -> None:
    """What has a place at a host runs, or its lease has ended."""
    running = set(store.zset("download:leases"))
    running |= {member.split(" ", 1)[0] for member in store.zset("stopping")}
    for host in store.under("visits"):
        for job_id, ends in store.zset(f"visits:{host}").items():
            assert job_id in running or ends <= store.now_ms, f"a place without a download: {job_id}"
