"""The store of a fleet that is being broken: a primary whose address moves to its replica, or a Cluster."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from downloader.store import CLUSTER_SHARDS
from servers.fault_proxy import FaultProxy
from servers.ports import spare_ports
from servers.valkey import Valkey
from servers.valkey_groups import is_replicated, open_cluster, until

_COMMON = ("--appendonly", "yes", "--repl-diskless-sync-delay", "0")


@dataclass
class Stores:
    """Primaries and one replica. Methods block: call them in a thread."""

    primaries: list[Valkey]
    replica: Valkey
    clustered: bool = False

    def settings(self, link: FaultProxy) -> dict[str, Any]:
        """The table `redis` of a process with this link; on a Cluster processes connect to the nodes."""
        if self.clustered:
            first, *others = (f"127.0.0.1:{node.port}" for node in self.primaries)
            return {"url": f"redis://{first}", "nodes": others, "cluster": True}
        return {"url": link.url, "durability": "aof"}

    @contextmanager
    def clients(self) -> Iterator[Sequence[redis.Redis]]:
        """A client of each primary."""
        clients = [_client(node, socket_timeout=1.0) for node in self.primaries]
        try:
            yield clients
        finally:
            for client in clients:
                client.close()

    def start(self, node: Valkey) -> None:
        """Start a primary again; returns once it serves its keys."""
        node.start()
        with _client(node) as client:
            if self.clustered:
                until(lambda: "cluster_state:ok" in client.execute_command("CLUSTER", "INFO"), "a cluster")

    def unfinished(self) -> int:
        """How many aggregations and destinations have tasks that wait or run."""
        keys = [f"downloader:1:{{{shard}}}:{kind}:groups" for kind, shard in self._places()]
        count = 0
        with self.clients() as clients:
            for client in clients:
                with client.pipeline(transaction=False) as pipeline:
                    for key in keys:
                        pipeline.zcard(key)
                    # An error: the shard is at another node.
                    count += sum(n for n in pipeline.execute(raise_on_error=False) if isinstance(n, int))
        return count

    def _places(self) -> Sequence[tuple[str, int]]:
        shards = range(CLUSTER_SHARDS if self.clustered else 1)
        return list(itertools.product(("download", "callback"), shards))

    def overdue(self) -> Sequence[tuple[str, str, float]]:
        """Leases that ended and were not swept: kind, name, and seconds since then by the store's clock."""
        places, found = self._places(), []
        with self.clients() as clients:
            for client in clients:
                seconds, micros = (int(part) for part in client.time())
                now_ms = seconds * 1000 + micros // 1000
                with client.pipeline(transaction=False) as pipeline:
                    for kind, shard in places:
                        key = f"downloader:1:{{{shard}}}:{kind}:leases"
                        pipeline.zrange(key, 0, now_ms, byscore=True, withscores=True)
                    answers: list[Any] = pipeline.execute(raise_on_error=False)
                for (kind, _), leases in zip(places, answers, strict=True):
                    if isinstance(leases, list):  # or the shard is at another node
                        found += [
                            (kind, f"{kind} {one}@{int(end)}", (now_ms - end) / 1000) for one, end in leases
                        ]
        return found

    def end_marks(self, after_s: float) -> None:
        """Let each mark on a shared file end after so many seconds: its reaper is dead."""
        with self.clients() as clients:
            for client in clients:
                for key in client.scan_iter("downloader:*:deleting:*", count=1000):
                    client.pexpire(key, int(after_s * 1000), lt=True)

    def move(self) -> None:
        """Make the replica a primary in place of its own, which has all data when it gives way."""
        replica = self.replica
        with _client(replica) as client:
            port = int(client.info("replication")["master_port"])
            old = next(node for node in self.primaries if node.port == port)
            with _client(old) as primary:

                def asked() -> bool:
                    if self.clustered:
                        client.execute_command("CLUSTER", "FAILOVER")
                    else:
                        primary.execute_command("FAILOVER", "TO", "127.0.0.1", replica.port)
                    return True

                until(lambda: is_replicated(primary), "a replica in step")
                until(asked, "a failover")
                until(lambda: client.info("replication")["role"] == "master", "a new primary")
        self.primaries[self.primaries.index(old)], self.replica = replica, old
        if not self.clustered:
            # For the next start of each.
            old.options, replica.options = (*_COMMON, "--replicaof", "127.0.0.1", str(replica.port)), _COMMON


def _client(node: Valkey, **options: Any) -> redis.Redis:
    return redis.Redis(port=node.port, decode_responses=True, **options)


@contextmanager
def open_stores(*, clustered: bool) -> Iterator[Stores]:
    """Servers with append-only files: a primary or the three of a Cluster, and a replica of the first."""
    if clustered:
        # `aof` is not available there, so each write is synced before its answer. A replica takes over on
        # request only: by itself it does so without what it has not got yet.
        options = ("--appendfsync", "always", "--cluster-replica-no-failover", "yes")
        with open_cluster(*_COMMON, *options, primaries=3, replicas=1) as [*primaries, replica]:
            yield Stores(primaries, replica, clustered=True)
        return
    port, other = spare_ports(2)
    with (
        Valkey(*_COMMON, port=port) as primary,
        Valkey(*_COMMON, "--replicaof", "127.0.0.1", str(port), port=other) as replica,
    ):
        yield Stores([primary], replica)
