"""Every key in Redis with name, type, time to live and owner. No other module builds a key's name.

A key is `<prefix>:<layout>:{<shard>}:<name>`. The braces are a Redis Cluster hash tag: all keys that a script
uses have the same shard, and therefore the same slot. A standalone server has one shard, a Cluster
`CLUSTER_SHARDS`. An aggregation's shard follows from its name, a job's shard from its id.

The functions `key_<name>(...)` of the scripts are generated from the same table (`lua_key_functions`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

LAYOUT_VERSION = 1
"""Increased when a version of the service cannot share a store with the version before."""

CLUSTER_SHARDS = 16
"""Enough shards to spread over the nodes of a Cluster, and few enough to ask all shards in a call."""


@dataclass(frozen=True, slots=True)
class Key:
    """A kind of key."""

    name: str
    """The name in the code; running stores may have an earlier one in the path."""
    path: str
    """The key without the base, with parameters in angle brackets."""
    type: str
    holds: str
    ttl: str = field(default="", kw_only=True)
    """Empty: none; the owner deletes the key."""
    owner: str = field(default="", kw_only=True)
    """Which transition deletes the key, or why there are few."""

    @property
    def parameters(self) -> Sequence[str]:
        """The names of the parameters, in the order of the path."""
        return re.findall("<(.*?)>", self.path)


KEYS = (
    Key(
        "job",
        "job:<id>",
        "string",
        "the job as the client asked for it: JSON, written once; with `redis.encryption_keys` the "
        "fields that may be secret are encrypted in `sealed`",
        owner="remove",
    ),
    Key(
        "task",
        "<kind>:task:<id>",
        "hash",
        "state of the job's download or callback; mostly absent for a download that never ran",
        owner="remove",
    ),
    Key(
        "ended",
        "ended",
        "hash",
        "by job id, in place of `job` and `task`: what is kept of a job whose download, and callback if "
        "any, has succeeded, or that was cancelled; see `store/ended.py`",
        owner="a field goes when its job is removed",
    ),
    Key(
        "pending",
        "<kind>:queue:<queue>",
        "zset",
        "pending tasks of a queue by due time (ms)",
        owner="empties as its tasks are leased",
    ),
    Key(
        "urgent",
        "urgent:<queue>",
        "zset",
        "pending downloads of an aggregation whose priority is above 0, the highest first, then by due "
        "time; they are in `download:queue` too",
        owner="a member goes when its download leaves the queue, or else by `lease`; all with their queue",
    ),
    Key(
        "running",
        "<kind>:running:<queue>",
        "set",
        "leased tasks of a queue, each in one of its slots",
        owner="empties as leases end; `sweep` ends those of dead instances",
    ),
    Key(
        "queue_record",
        "<kind>:group:<queue>",
        "hash",
        "`limit`, `proxy`, `paused` and `token` (that it belongs to) of an aggregation or callback "
        "destination; of an aggregation whose origin asked for a pause also `cooling` (until when, ms), "
        "`cooled` (since when), `cooldowns` (how many followed each other), `why` and `pace` (three "
        "numbers, see `_pace.lua`); `rate` (starts per second), `delay` (s) and `started` (the last "
        "start that counts, ms); while an operator's limit, rate or delay holds, `asked_limit`, "
        "`asked_rate` or `asked_delay` has the jobs'",
        owner="the transition that takes the queue's last task, or the time of its next start",
    ),
    Key(
        "visits",
        "visits:<host>",
        "zset",
        "downloads that have a place at a host, by the end of their lease (ms)",
        owner="a member goes when its download is settled or swept, or its lease has ended",
    ),
    Key(
        "host",
        "host:<host>",
        "hash",
        "of a host with limits, as in an aggregation's record: `cooling`, `cooled`, `cooldowns`, `why`, "
        "`pace`, `rate`, `delay` and `started`; and `next` (the time for which a start is planned, ms)",
        ttl="25 h",
    ),
    Key(
        "host_limits",
        "host_limits:<digest>",
        "hash",
        "the limits of `[processor.hosts]` by host or pattern: JSON; one table per configuration in use, "
        "by its digest; a lease call in the second half of the hour prolongs it",
        ttl="1 h",
    ),
    Key("crawl", "crawl:<host>", "string", "`Crawl-delay` of the host's robots.txt (s)", ttl="24 h"),
    Key(
        "parked",
        "parked:<host>:<queue>",
        "zset",
        "pending downloads of an aggregation that wait for a host, by score as in `urgent`",
        ttl="25 h",
    ),
    Key(
        "waiting",
        "waiting:<host>",
        "zset",
        "aggregations with downloads that wait for a host, by turn",
        ttl="25 h",
    ),
    Key(
        "queues",
        "<kind>:groups",
        "zset",
        "queues with work; the score is the number of tasks that are pending or running, plus a "
        "millionth for each that is running",
        owner="a member goes with its queue",
    ),
    Key(
        "ready",
        "<kind>:ready",
        "zset",
        "queues that can run now, by turn; of callbacks those to proven destinations",
        owner="a member goes when its queue is leased from, full, paused or gone",
    ),
    Key(
        "unproven",
        "unproven",
        "zset",
        "callback queues that can run now and are neither proven nor disproven, by turn",
        owner="a member goes when its queue is leased from, full, proven or gone",
    ),
    Key(
        "failing",
        "failing",
        "zset",
        "callback queues that can run now and are disproven, by turn; they are in `timers` too",
        owner="a member goes when its queue is leased from, full, proven or gone",
    ),
    Key(
        "last_start",
        "last_start:<queue>",
        "string",
        "`started` of a callback destination with a rate whose record is gone",
        ttl="1 / rate",
    ),
    Key(
        "proven",
        "proven:<queue>",
        "string",
        "that a callback destination has taken a callback quickly lately",
        ttl="10 min",
    ),
    Key(
        "disproven",
        "disproven:<queue>",
        "string",
        "that a callback to a destination has failed or taken long lately",
        ttl="10 min",
    ),
    Key(
        "tokens",
        "tokens",
        "zset",
        "names of the tokens with jobs, by turn; an empty one stands for jobs without a token",
        ttl="24 h",
    ),
    Key(
        "turns",
        "turns:<set>:<token>",
        "zset",
        "queues of a token that have joined `<set>` (`download:ready` and the like), with their scores "
        "there; also some that have left it",
        ttl="24 h",
    ),
    Key(
        "usage",
        "usage:<token>",
        "hash",
        "of a token with a quota: `jobs` whose download is not over, their `bytes`, `aggregations`, and "
        "`groups` of jobs",
        owner="the transition that gives back the last",
    ),
    Key(
        "timers",
        "<kind>:timers",
        "zset",
        "queues that can run later, by the due time (ms) of their first task",
        owner="a member goes when it is due, its queue is full, paused or gone",
    ),
    Key(
        "idle",
        "<kind>:idle:<types>",
        "zset",
        "instances that have a free slot and wait, by when they have looked last (ms); 45 s are added "
        "for one that leaves what can run to others; those that can deliver the same types of "
        "callbacks, as in `,http,kafka,`, or `*`",
        ttl="90 s",
    ),
    Key(
        "waiter",
        "<kind>:waiter:<types>",
        "string",
        "`<ms> <instance>`: which idle instance looks when the first timer is due, at the latest in 5 s",
        ttl="6.5 s",
    ),
    Key(
        "watcher",
        "<kind>:watcher:<types>",
        "string",
        "`<ms> <instance>`: which idle instance looks then, as one that was woken may be frozen",
        ttl="6.5 s",
    ),
    Key(
        "types",
        "types",
        "hash",
        "types of callbacks that an instance can deliver, as in `,http,kafka,`: its last call (ms)",
        ttl="2 min",
    ),
    Key(
        "aside",
        "aside:<type>",
        "zset",
        "callback queues that can run now, left to the instances that can deliver the type; they are in "
        "`timers` too",
        ttl="90 s",
    ),
    Key(
        "leases",
        "<kind>:leases",
        "zset",
        "running tasks by the end of their lease (ms)",
        owner="a member goes when its task is settled or swept",
    ),
    Key("paused", "paused", "string", "that an operator has paused all aggregations", owner="`pause`"),
    Key(
        "stopping",
        "stopping",
        "zset",
        "cancelled downloads that still have their slot: `<id> <aggregation>` by the end of their lease (ms)",
        owner="a member goes when its holder has stopped, or by `sweep`",
    ),
    Key(
        "memo",
        "<kind>:memo:<owner>",
        "string",
        "an instance's last lease request and what it got, for a repeated request",
        ttl="one lease",
    ),
    Key(
        "reap",
        "reap",
        "zset",
        "finished jobs by the time (ms) at which file and record go",
        owner="a member goes when its job is removed or retried",
    ),
    Key(
        "reap_ended",
        "reap_ended",
        "zset",
        "jobs with a record in `ended`, as in `reap`; an earlier version leaves them alone",
        owner="a member goes when its job is removed",
    ),
    Key(
        "failed",
        "failed",
        "zset",
        "jobs whose callback has failed by the time (ms) until which they are kept, to be counted",
        owner="a member goes when its job is retried or delivered, or by `reap` when its time is up",
    ),
    Key(
        "failed_downloads",
        "failed_downloads",
        "zset",
        "jobs whose download has failed by when (ms), to be retried together",
        owner="a member goes when its download is retried, or with its job",
    ),
    Key(
        "job_group",
        "job_group:<name>",
        "hash",
        "a group of jobs, as far as they are in the shard: `jobs`, `succeeded`, `failed`, `cancelled`, "
        "`first_at`, `last_at` (ms), `retried` (how many became unfinished again), `sealed` and "
        "`completed` (since when, ms), `reopened` (the `sealed` before it was reopened); in the shard "
        "of its name also its callback: `spec` (as `job`), `id`, `callback` (destination), `limit` and "
        "`token`; `token_of_quota`, if it counts in `usage`",
        owner="`tend`, a week after its completion; unsealed, 30 days after its last job",
    ),
    Key(
        "members",
        "members:<name>",
        "zset",
        "unfinished jobs of a group of jobs, by when they came (ms)",
        owner="a member goes when its job and the job's callback have ended, or by `tend`",
    ),
    Key(
        "job_groups",
        "job_groups",
        "zset",
        "groups of jobs that are in the shard, by when they are looked at (ms), see `tend`",
        owner="a member goes with its group",
    ),
    Key(
        "sharers",
        "sharers:<file>",
        "set",
        "ids of the jobs that have stored a file under a key with its digest, or are about to; an empty "
        "one stands for whoever has stored it before. `<file>` is a digest of the key, and gives the "
        "shard",
        owner="a member goes when its job is removed, by `unshare`",
    ),
    Key(
        "deleting",
        "deleting:<file>",
        "string",
        "who deletes that file, as its last job is being removed",
        ttl="4 min",
    ),
    Key(
        "idempotency",
        "idempotency:<digest>",
        "string",
        "`<job id> <digest of its values>` of an Idempotency-Key",
        ttl="24 h",
    ),
    Key(
        "instance",
        "instance:<role>:<instance>",
        "string",
        "facts and counters of a live instance: JSON",
        ttl="three reports",
    ),
    Key(
        "instances",
        "instances:<role>",
        "zset",
        "live instances of a role by the time (ms) from which they count as gone",
        ttl="three reports of the instance that reports least often",
    ),
    Key(
        "totals",
        "totals:<role>",
        "hash",
        "counters of all instances of a role, also those that have ended, by series",
        owner="one per store; as many fields as there are series",
    ),
    Key(
        "history",
        "history",
        "hash",
        "the backlog of the last day: a point every five minutes, JSON",
        owner="one per store; 288 fields, overwritten in turn",
    ),
    Key(
        "audit",
        "audit:<of>",
        "stream",
        "the newest changes by operators, with the name of the token: JSON in the field `entry`",
        owner="two per store: `jobs`, and `fleet` for pauses and limits; at most 1,000 entries each",
    ),
    Key(
        "counted",
        "counted:<role>:<instance>",
        "string",
        "number of the instance's last counts that `totals` has",
        ttl="24 h",
    ),
    Key("layout", "layout", "string", "layout version and number of shards: JSON", owner="one per store"),
    Key(
        "synced",
        "synced",
        "string",
        "nothing; each durable call writes its time to live, so that there is something to wait for",
        ttl="24 h",
    ),
    Key(
        "wake",
        "<kind>:wake",
        "channel",
        "published with a job's id when it is cancelled while it runs; without a text when nobody is "
        "idle, and a shard's first queue becomes ready or its first timer earlier",
        owner="not stored",
    ),
    Key(
        "wake_one",
        "<kind>:wake_one:<instance>",
        "channel",
        "in how many ms this instance looks for work; 0: at once",
        owner="not stored",
    ),
)

_TEMPLATES = {key.name: re.sub("<.*?>", "{}", key.path) for key in KEYS}
_PARAMETERS = {key.name: len(key.parameters) for key in KEYS}


@dataclass(frozen=True, slots=True)
class Keys:
    """Builds the names of keys for a store."""

    prefix: str
    shards: int

    def base(self, shard: int) -> str:
        """The prefix of all keys of a shard."""
        return f"{self.prefix}:{LAYOUT_VERSION}:{{{shard}}}:"

    def key(self, shard: int, name: str, *values: str) -> str:
        """The key `name` of a shard.

        Raises:
            KeyError: no such key in the table.
            ValueError: the number of values is wrong.
        """
        if len(values) != _PARAMETERS[name]:
            raise ValueError(f"{name} takes {_PARAMETERS[name]} values")
        return self.base(shard) + _TEMPLATES[name].format(*values)

    def aggregation_shard(self, aggr_id: str) -> int:
        """The shard of an aggregation and of the aggregation's jobs; or of a shared file."""
        if self.shards == 1:
            return 0
        digest = hashlib.blake2b(aggr_id.encode("utf-8", "surrogatepass"), digest_size=4).digest()
        return int.from_bytes(digest, "big") % self.shards


def lua_key_functions() -> str:
    """Lua source: `key_<name>(parameters)` for each key, over the local `base`."""
    lines = []
    for key in KEYS:
        parts = [part for part in re.split("(<.*?>)", key.path) if part]
        path = " .. ".join(part[1:-1] if part.startswith("<") else f"'{part}'" for part in parts)
        lines.append(f"local function key_{key.name}({', '.join(key.parameters)}) return base .. {path} end")
    return "\n".join(lines) + "\n"
