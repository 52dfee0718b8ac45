"""Every key in Redis: its name, type, time to live and owner. The only place where a key is spelled.

A key is `<prefix>:<layout>:{<shard>}:<name>`. The braces are a Redis Cluster hash tag: everything that one
script touches has the same shard, hence the same slot. A standalone server has one shard, a cluster
`CLUSTER_SHARDS`; an aggregation's shard follows from its name, a job's from its id.

Lua gets its key functions from this table too (`lua_key_functions`), as `key_<name>(...)`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

LAYOUT_VERSION = 1
"""Raised when a version cannot share a store with the one before it."""

CLUSTER_SHARDS = 16
"""Enough to spread over the nodes of a cluster, few enough that asking each in turn stays cheap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One kind of key."""

    name: str
    parameters: tuple[str, ...]
    type: str
    ttl: str
    """Empty: none, the owner deletes it."""
    owner: str
    """Which transition deletes it, or what bounds its number."""
    holds: str

    @property
    def path(self) -> str:
        """Its name behind the base, with parameters in angle brackets."""
        if self.parameters[:1] == ("kind",):
            return ":".join(["<kind>", self.name, *(f"<{p}>" for p in self.parameters[1:])])
        return ":".join([self.name, *(f"<{p}>" for p in self.parameters)])


KEYS = (
    Key(
        name="job",
        parameters=("id",),
        type="string",
        ttl="",
        owner="remove",
        holds="the job as the client asked for it: JSON, written once",
    ),
    Key(
        name="task",
        parameters=("kind", "id"),
        type="hash",
        ttl="",
        owner="remove",
        holds="state of the job's download or callback; mostly absent for a download that never ran",
    ),
    Key(
        name="queue",
        parameters=("kind", "group"),
        type="zset",
        ttl="",
        owner="empties as its tasks are leased",
        holds="pending tasks of a group by due time (ms)",
    ),
    Key(
        name="running",
        parameters=("kind", "group"),
        type="set",
        ttl="",
        owner="empties as leases end; sweep ends those of the dead",
        holds="leased tasks of a group, each in one of its slots",
    ),
    Key(
        name="group",
        parameters=("kind", "group"),
        type="hash",
        ttl="",
        owner="the transition that takes the group's last task",
        holds="`limit`, `proxy`, `paused` of an aggregation or callback destination",
    ),
    Key(
        name="groups",
        parameters=("kind",),
        type="zset",
        ttl="",
        owner="a member goes with its group",
        holds=(
            "groups with work, by number of tasks pending or running; behind the point, in millionths,"
            " those running"
        ),
    ),
    Key(
        name="ready",
        parameters=("kind",),
        type="zset",
        ttl="",
        owner="a member goes when its group is leased from, full, paused or gone",
        holds="groups that can run now, by turn; of callbacks those whose destination has answered lately",
    ),
    Key(
        name="unproven",
        parameters=(),
        type="zset",
        ttl="",
        owner="a member goes when its group is leased from, full, proven or gone",
        holds="callback groups that can run now and whose destination has not answered lately, by turn",
    ),
    Key(
        name="proven",
        parameters=("group",),
        type="string",
        ttl="10 min",
        owner="",
        holds="that a callback destination has taken a callback lately",
    ),
    Key(
        name="timers",
        parameters=("kind",),
        type="zset",
        ttl="",
        owner="a member goes when it is due, its group is full, paused or gone",
        holds="groups that can run later, by the due time (ms) of their first task",
    ),
    Key(
        name="leases",
        parameters=("kind",),
        type="zset",
        ttl="",
        owner="a member goes when its task is settled or swept",
        holds="running tasks by the end of their lease (ms)",
    ),
    Key(
        name="memo",
        parameters=("kind", "owner"),
        type="string",
        ttl="one lease",
        owner="",
        holds="an instance's last lease request and what it got, for a repeated request",
    ),
    Key(
        name="reap",
        parameters=(),
        type="zset",
        ttl="",
        owner="a member goes when its job is removed or retried",
        holds="finished jobs by the time (ms) at which file and record go",
    ),
    Key(
        name="idempotency",
        parameters=("digest",),
        type="string",
        ttl="24 h",
        owner="",
        holds="`<job id> <body digest>` of an Idempotency-Key",
    ),
    Key(
        name="instance",
        parameters=("role", "instance"),
        type="string",
        ttl="three reports",
        owner="",
        holds="what a live instance says of itself: JSON",
    ),
    Key(
        name="instances",
        parameters=("role",),
        type="zset",
        ttl="three reports",
        owner="",
        holds="live instances of a role by the time (ms) of their last report",
    ),
    Key(
        name="layout",
        parameters=(),
        type="string",
        ttl="",
        owner="one per store",
        holds="layout version and number of shards: JSON",
    ),
    Key(
        name="wake",
        parameters=("kind",),
        type="channel",
        ttl="",
        owner="not stored",
        holds="published when a shard's first group becomes ready or its first timer earlier",
    ),
)

_BY_NAME = {key.name: key for key in KEYS}


@dataclass(frozen=True, slots=True)
class Keys:
    """Spells keys for one store."""

    prefix: str
    shards: int

    def base(self, shard: int) -> str:
        """What every key of a shard begins with."""
        return f"{self.prefix}:{LAYOUT_VERSION}:{{{shard}}}:"

    def key(self, shard: int, name: str, *values: str) -> str:
        """The key `name` of a shard.

        Raises:
            KeyError: no such key in the table.
        """
        key = _BY_NAME[name]
        if len(values) != len(key.parameters):
            raise ValueError(f"{name} takes {key.parameters}")
        if key.parameters[:1] == ("kind",):
            return self.base(shard) + ":".join([values[0], name, *values[1:]])
        return self.base(shard) + ":".join([name, *values])

    def aggregation_shard(self, aggr_id: str) -> int:
        """The shard of an aggregation and of all its jobs."""
        if self.shards == 1:
            return 0
        digest = hashlib.blake2b(aggr_id.encode("utf-8", "surrogatepass"), digest_size=4).digest()
        return int.from_bytes(digest, "big") % self.shards


def lua_key_functions() -> str:
    """Lua source: one `key_<name>(parameters)` for each key, over the local `base`."""
    lines = []
    for key in KEYS:
        parameters = ", ".join(key.parameters)
        if key.parameters[:1] == ("kind",):
            parts = ["kind", f"':{key.name}'"]
            rest = key.parameters[1:]
        else:
            parts = [f"'{key.name}'"]
            rest = key.parameters
        for name in rest:
            parts += ["':'", name]
        lines.append(f"local function key_{key.name}({parameters}) return base .. {' .. '.join(parts)} end")
    return "\n".join(lines) + "\n"
