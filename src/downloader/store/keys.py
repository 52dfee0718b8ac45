"""Every key in Redis with name, type, time to live and owner. No other module builds a key's name.

A key is `<prefix>:<layout>:{<shard>}:<name>`. The braces are a Redis Cluster hash tag: all keys that a script
uses have the same shard, and therefore the same slot. A standalone server has one shard, a Cluster
`CLUSTER_SHARDS`. An aggregation's shard follows from its name, a job's shard from its id.

The functions `key_<name>(...)` of the scripts are generated from the same table (`lua_key_functions`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

LAYOUT_VERSION = 1
"""Increased when a version of the service cannot share a store with the version before."""

CLUSTER_SHARDS = 16
"""Enough shards to spread over the nodes of a Cluster, and few enough to ask all shards in a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A kind of key."""

    name: str
    stored_as: str = ""
    """The name in Redis, if it is another: running stores keep the names of earlier versions."""
    parameters: tuple[str, ...] = ()
    type: str
    ttl: str = ""
    """Empty: none; the owner deletes the key."""
    owner: str = ""
    """Which transition deletes the key, or why there are few."""
    holds: str

    @property
    def path(self) -> str:
        """The key without the base, with parameters in angle brackets."""
        return ":".join(self.parts([f"<{parameter}>" for parameter in self.parameters]))

    def parts(self, values: Sequence[str], quote: str = "") -> Sequence[str]:
        """Name, in quotes, and parameter values in the order of the key; the kind, if any, comes first."""
        kinds = 1 if self.parameters[:1] == ("kind",) else 0
        return [*values[:kinds], f"{quote}{self.stored_as or self.name}{quote}", *values[kinds:]]


KEYS = (
    Key(
        name="job",
        parameters=("id",),
        type="string",
        owner="remove",
        holds="the job as the client asked for it: JSON, written once; with `redis.encryption_keys` the"
        " fields that may be secret are encrypted in `sealed`",
    ),
    Key(
        name="task",
        parameters=("kind", "id"),
        type="hash",
        owner="remove",
        holds="state of the job's download or callback; mostly absent for a download that never ran",
    ),
    Key(
        name="ended",
        type="hash",
        owner="a field goes when its job is removed",
        holds="by job id, in place of `job` and `task`: what is kept of a job whose download, and callback if"
        " any, has succeeded, or that was cancelled; see `store/ended.py`",
    ),
    Key(
        name="pending",
        stored_as="queue",
        parameters=("kind", "queue"),
        type="zset",
        owner="empties as its tasks are leased",
        holds="pending tasks of a queue by due time (ms)",
    ),
    Key(
        name="urgent",
        parameters=("queue",),
        type="zset",
        owner="a member goes when its download leaves the queue, or else by `lease`; all with their queue",
        holds=(
            "pending downloads of an aggregation whose priority is above 0, the highest first, then by due"
            " time; they are in `download:queue` too"
        ),
    ),
    Key(
        name="running",
        parameters=("kind", "queue"),
        type="set",
        owner="empties as leases end; `sweep` ends those of dead instances",
        holds="leased tasks of a queue, each in one of its slots",
    ),
    Key(
        name="queue_record",
        stored_as="group",
        parameters=("kind", "queue"),
        type="hash",
        owner="the transition that takes the queue's last task, or the time of its next start",
        holds=(
            "`limit`, `proxy`, `paused` and `token` (that it belongs to) of an aggregation or callback"
            " destination; of an aggregation whose"
            " origin asked for a pause also `cooling` (until when, ms), `cooled` (since when), `cooldowns`"
            " (how many followed each other), `why` and `pace` (three numbers, see `_pace.lua`); `rate`"
            " (starts per second), `delay` (s) and `started` (the last start that counts, ms); while an"
            " operator's limit, rate or delay holds, `asked_limit`, `asked_rate` or `asked_delay`"
            " has the jobs'"
        ),
    ),
    Key(
        name="visits",
        parameters=("host",),
        type="zset",
        owner="a member goes when its download is settled or swept, or its lease has ended",
        holds="downloads that have a place at a host, by the end of their lease (ms)",
    ),
    Key(
        name="host",
        parameters=("host",),
        type="hash",
        ttl="25 h",
        holds=(
            "of a host with limits, as in an aggregation's record: `cooling`, `cooled`, `cooldowns`, `why`,"
            " `pace`, `rate`, `delay` and `started`; and `next` (the time for which a start is planned, ms)"
        ),
    ),
    Key(
        name="crawl",
        parameters=("host",),
        type="string",
        ttl="24 h",
        holds="`Crawl-delay` of the host's robots.txt (s)",
    ),
    Key(
        name="parked",
        parameters=("host", "queue"),
        type="zset",
        ttl="25 h",
        holds="pending downloads of an aggregation that wait for a host, by score as in `urgent`",
    ),
    Key(
        name="waiting",
        parameters=("host",),
        type="zset",
        ttl="25 h",
        holds="aggregations with downloads that wait for a host, by turn",
    ),
    Key(
        name="queues",
        stored_as="groups",
        parameters=("kind",),
        type="zset",
        owner="a member goes with its queue",
        holds=(
            "queues with work; the score is the number of tasks that are pending or running, plus a"
            " millionth for each that is running"
        ),
    ),
    Key(
        name="ready",
        parameters=("kind",),
        type="zset",
        owner="a member goes when its queue is leased from, full, paused or gone",
        holds="queues that can run now, by turn; of callbacks those to proven destinations",
    ),
    Key(
        name="unproven",
        type="zset",
        owner="a member goes when its queue is leased from, full, proven or gone",
        holds="callback queues that can run now and are neither proven nor disproven, by turn",
    ),
    Key(
        name="failing",
        type="zset",
        owner="a member goes when its queue is leased from, full, proven or gone",
        holds="callback queues that can run now and are disproven, by turn; they are in `timers` too",
    ),
    Key(
        name="last_start",
        parameters=("queue",),
        type="string",
        ttl="1 / rate",
        holds="`started` of a callback destination with a rate whose record is gone",
    ),
    Key(
        name="proven",
        parameters=("queue",),
        type="string",
        ttl="10 min",
        holds="that a callback destination has taken a callback quickly lately",
    ),
    Key(
        name="disproven",
        parameters=("queue",),
        type="string",
        ttl="10 min",
        holds="that a callback to a destination has failed or taken long lately",
    ),
    Key(
        name="tokens",
        type="zset",
        ttl="24 h",
        holds="names of the tokens with jobs, by turn; an empty one stands for jobs without a token",
    ),
    Key(
        name="turns",
        parameters=("set", "token"),
        type="zset",
        ttl="24 h",
        holds=(
            "queues of a token that have joined `<set>` (`download:ready` and the like), with their scores"
            " there; also some that have left it"
        ),
    ),
    Key(
        name="usage",
        parameters=("token",),
        type="hash",
        owner="the transition that gives back the last",
        holds=(
            "of a token with a quota: `jobs` whose download is not over, their `bytes`, `aggregations`, and"
            " `groups` of jobs"
        ),
    ),
    Key(
        name="timers",
        parameters=("kind",),
        type="zset",
        owner="a member goes when it is due, its queue is full, paused or gone",
        holds="queues that can run later, by the due time (ms) of their first task",
    ),
    Key(
        name="idle",
        parameters=("kind", "types"),
        type="zset",
        ttl="30 s",
        holds=(
            "instances that have a free slot and wait, by when they have looked last (ms); 15 s are added for"
            " one that leaves what can run to others; those that can deliver the same types of callbacks, as"
            " in `,http,kafka,`, or `*`"
        ),
    ),
    Key(
        name="waiter",
        parameters=("kind", "types"),
        type="string",
        ttl="6.5 s",
        holds="`<ms> <instance>`: which idle instance looks when the first timer is due",
    ),
    Key(
        name="watcher",
        parameters=("kind", "types"),
        type="string",
        ttl="6.5 s",
        holds="`<ms> <instance>`: which idle instance looks then, as one that was woken may be frozen",
    ),
    Key(
        name="types",
        type="hash",
        ttl="2 min",
        holds="types of callbacks that an instance can deliver, as in `,http,kafka,`: its last call (ms)",
    ),
    Key(
        name="aside",
        parameters=("type",),
        type="zset",
        ttl="90 s",
        holds=(
            "callback queues that can run now, left to the instances that can deliver the type; they are in"
            " `timers` too"
        ),
    ),
    Key(
        name="leases",
        parameters=("kind",),
        type="zset",
        owner="a member goes when its task is settled or swept",
        holds="running tasks by the end of their lease (ms)",
    ),
    Key(
        name="paused",
        type="string",
        owner="`pause`",
        holds="that an operator has paused all aggregations",
    ),
    Key(
        name="stopping",
        type="zset",
        owner="a member goes when its holder has stopped, or by `sweep`",
        holds=(
            "cancelled downloads that still have their slot: `<id> <aggregation>` by the end of their lease"
            " (ms)"
        ),
    ),
    Key(
        name="memo",
        parameters=("kind", "owner"),
        type="string",
        ttl="one lease",
        holds="an instance's last lease request and what it got, for a repeated request",
    ),
    Key(
        name="reap",
        type="zset",
        owner="a member goes when its job is removed or retried",
        holds="finished jobs by the time (ms) at which file and record go",
    ),
    Key(
        name="reap_ended",
        type="zset",
        owner="a member goes when its job is removed",
        holds="jobs with a record in `ended`, as in `reap`; an earlier version leaves them alone",
    ),
    Key(
        name="failed",
        type="zset",
        owner="a member goes when its job is retried or delivered, or by `reap` when its time is up",
        holds="jobs whose callback has failed by the time (ms) until which they are kept, to be counted",
    ),
    Key(
        name="failed_downloads",
        type="zset",
        owner="a member goes when its download is retried, or with its job",
        holds="jobs whose download has failed by when (ms), to be retried together",
    ),
    Key(
        name="job_group",
        parameters=("name",),
        type="hash",
        owner="`tend`, a week after its completion; unsealed, 30 days after its last job",
        holds=(
            "a group of jobs, as far as they are in the shard: `jobs`, `succeeded`, `failed`, `cancelled`,"
            " `first_at`, `last_at` (ms), `retried` (how many became unfinished again), `sealed` and"
            " `completed` (since when, ms), `reopened` (the `sealed` before it was reopened); in the shard of"
            " its name also its callback: `spec` (as `job`),"
            " `id`, `callback` (destination), `limit` and `token`; `token_of_quota`, if it counts in `usage`"
        ),
    ),
    Key(
        name="members",
        parameters=("name",),
        type="zset",
        owner="a member goes when its job and the job's callback have ended, or by `tend`",
        holds="unfinished jobs of a group of jobs, by when they came (ms)",
    ),
    Key(
        name="job_groups",
        type="zset",
        owner="a member goes with its group",
        holds="groups of jobs that are in the shard, by when they are looked at (ms), see `tend`",
    ),
    Key(
        name="sharers",
        parameters=("file",),
        type="set",
        owner="a member goes when its job is removed, by `unshare`",
        holds=(
            "ids of the jobs that have stored a file under a key with its digest, or are about to; an empty"
            " one stands for whoever has stored it before. `<file>` is a digest of the key, and gives the"
            " shard"
        ),
    ),
    Key(
        name="deleting",
        parameters=("file",),
        type="string",
        ttl="4 min",
        holds="who deletes that file, as its last job is being removed",
    ),
    Key(
        name="idempotency",
        parameters=("digest",),
        type="string",
        ttl="24 h",
        holds="`<job id> <digest of its values>` of an Idempotency-Key",
    ),
    Key(
        name="instance",
        parameters=("role", "instance"),
        type="string",
        ttl="three reports",
        holds="facts and counters of a live instance: JSON",
    ),
    Key(
        name="instances",
        parameters=("role",),
        type="zset",
        ttl="three reports of the instance that reports least often",
        holds="live instances of a role by the time (ms) from which they count as gone",
    ),
    Key(
        name="totals",
        parameters=("role",),
        type="hash",
        owner="one per store; as many fields as there are series",
        holds="counters of all instances of a role, also those that have ended, by series",
    ),
    Key(
        name="history",
        type="hash",
        owner="one per store; 288 fields, overwritten in turn",
        holds="the backlog of the last day: a point every five minutes, JSON",
    ),
    Key(
        name="audit",
        parameters=("of",),
        type="stream",
        owner="two per store: `jobs`, and `fleet` for pauses and limits; at most 1,000 entries each",
        holds="the newest changes by operators, with the name of the token: JSON in the field `entry`",
    ),
    Key(
        name="counted",
        parameters=("role", "instance"),
        type="string",
        ttl="24 h",
        holds="number of the instance's last counts that `totals` has",
    ),
    Key(
        name="layout",
        type="string",
        owner="one per store",
        holds="layout version and number of shards: JSON",
    ),
    Key(
        name="synced",
        type="string",
        ttl="24 h",
        holds="nothing; each durable call writes its time to live, so that there is something to wait for",
    ),
    Key(
        name="wake",
        parameters=("kind",),
        type="channel",
        owner="not stored",
        holds=(
            "published with a job's id when it is cancelled while it runs; without a text when nobody is"
            " idle, and a shard's first queue becomes ready or its first timer earlier"
        ),
    ),
    Key(
        name="wake_one",
        parameters=("kind", "instance"),
        type="channel",
        owner="not stored",
        holds="in how many ms this instance looks for work; 0: at once",
    ),
)

_BY_NAME = {key.name: key for key in KEYS}


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
        key = _BY_NAME[name]
        if len(values) != len(key.parameters):
            raise ValueError(f"{name} takes {key.parameters}")
        return self.base(shard) + ":".join(key.parts(values))

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
        parts = " .. ':' .. ".join(key.parts(key.parameters, quote="'"))
        lines.append(f"local function key_{key.name}({', '.join(key.parameters)}) return base .. {parts} end")
    return "\n".join(lines) + "\n"
