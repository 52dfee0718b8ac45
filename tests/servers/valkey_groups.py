"""Real servers in groups: a primary with a replica and a Sentinel, and a Cluster."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import redis

from servers.ports import spare_ports
from servers.valkey import Valkey, server_binary

AGREE_S = 60.0
"""Time for servers to find each other; a second or two on an idle machine.

A Sentinel whose timer has stood still for two seconds does nothing for the next thirty (TILT)."""

SLOTS = 16384


def until(condition: Callable[[], object], what: str) -> None:
    """Poll servers, which send no events, until a condition is true."""
    deadline = time.monotonic() + AGREE_S
    while True:
        try:
            if condition():
                return
        except redis.RedisError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come about in {AGREE_S} s")
        time.sleep(0.02)


@dataclass
class Watched:
    """A primary, a replica, and a Sentinel."""

    nodes: dict[int, Valkey]
    sentinel_port: int

    @property
    def sentinel(self) -> redis.Redis:
        return redis.Redis(port=self.sentinel_port, decode_responses=True)

    def primary_port(self) -> int:
        """According to the Sentinel."""
        with self.sentinel as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")[1])

    def is_ready(self) -> bool:
        """Whether the replica is in step with the primary and the Sentinel knows both."""
        port = self.primary_port()
        with redis.Redis(port=port, decode_responses=True) as client, self.sentinel as sentinel:
            role = client.execute_command("ROLE")
            replicas = sentinel.execute_command("SENTINEL", "REPLICAS", "mymaster")
            return role[0] in ("master", b"master") and is_replicated(client) and len(replicas) == 1

    def fail_over(self) -> None:
        """Have the Sentinel make the replica the primary, while both live.

        Asked for until it is done, because a Sentinel on a busy machine gives up after three seconds.
        """
        before = self.primary_port()

        def done() -> bool:
            if self.primary_port() != before:
                return True
            with self.sentinel as client:
                client.execute_command("SENTINEL", "FAILOVER", "mymaster")  # an error while one is under way
            return False

        until(done, "a failover")


@contextmanager
def watched_by_sentinel(folder: Path) -> Iterator[Watched]:
    """Two servers and a Sentinel, in step."""
    *ports, port = spare_ports(3)
    fast = ("--repl-diskless-sync-delay", "0", "--protected-mode", "no")
    primary = Valkey(*fast, port=ports[0])
    replica = Valkey(*fast, "--replicaof", "127.0.0.1", str(ports[0]), port=ports[1])
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\nprotected-mode no\n"
        f"sentinel monitor mymaster 127.0.0.1 {ports[0]} 1\n"
        "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\n"
    )
    with primary, replica:
        with (folder / "sentinel.log").open("ab") as log:
            sentinel = subprocess.Popen([server_binary(), str(config), "--sentinel"], stdout=log, stderr=log)
        try:
            watched = Watched({ports[0]: primary, ports[1]: replica}, port)
            until(watched.is_ready, "replication under a Sentinel")
            yield watched
        finally:
            sentinel.kill()
            sentinel.wait()


@contextmanager
def open_cluster(*options: str, primaries: int = 3, replicas: int = 0) -> Iterator[list[Valkey]]:
    """Servers that share the slots, each responding also while another is gone; the primaries first.

    Args:
        options: of each server, besides those that make it a node.
        primaries: how many have slots, equal shares in their order.
        replicas: how many of the first primaries have a replica, one each.
    """
    count = primaries + replicas
    spare = spare_ports(2 * count)
    ports, buses = spare[:count], spare[count:]
    nodes: list[Valkey] = []
    with ExitStack() as stack:
        for port, bus in zip(ports, buses, strict=True):
            clustered = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--protected-mode", "no")
            alone = ("--cluster-require-full-coverage", "no")
            nodes.append(stack.enter_context(Valkey(*clustered, *alone, *options, port=port)))
        clients = [stack.enter_context(redis.Redis(port=port, decode_responses=True)) for port in ports]
        share = -(-SLOTS // primaries)
        for index, client in enumerate(clients):
            if index < primaries:
                last = min(SLOTS, (index + 1) * share) - 1
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", index * share, last)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0], buses[0])

        # Without full coverage a node's state is ok before it knows who serves the others' slots.
        facts = ("cluster_state:ok", f"cluster_known_nodes:{count}", f"cluster_slots_assigned:{SLOTS}")

        def agreed() -> bool:
            states = [client.execute_command("CLUSTER", "INFO") for client in clients]
            return all(fact in text for text in states for fact in facts)

        until(agreed, "a cluster")
        for primary, replica in zip(clients, clients[primaries:], strict=False):
            replica.execute_command("CLUSTER", "REPLICATE", primary.execute_command("CLUSTER", "MYID"))
            until(partial(is_replicated, primary), "replication")
        yield nodes


def is_replicated(primary: redis.Redis) -> bool:
    """Whether a replica is in step."""
    info: dict[str, Any] = primary.info("replication")
    return bool(info.get("slave0", {}).get("state") == "online")


@dataclass
class SlotMove:
    """The slot of a key goes to another primary of a Cluster."""

    nodes: Sequence[Valkey]
    key: str

    def __post_init__(self) -> None:
        clients: list[Any] = [redis.Redis(port=node.port, decode_responses=True) for node in self.nodes]
        self._slot: int = clients[0].execute_command("CLUSTER", "KEYSLOT", self.key)
        index = self._slot // -(-SLOTS // len(clients))
        self._source, self._target = clients[index], clients[index - 1]
        self._port = self.nodes[index - 1].port
        self._ids = [client.execute_command("CLUSTER", "MYID") for client in (self._source, self._target)]

    def at_once(self) -> None:
        self._source.execute_command(
            "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", self._slot, self._slot, "NODE", self._ids[1]
        )
        until(lambda: self._slot_is_at(self._source, self._port), "a migration")

    def begin(self) -> None:
        self._set(self._target, "IMPORTING", self._ids[0])
        self._set(self._source, "MIGRATING", self._ids[1])

    def finish(self) -> None:
        while keys := self._source.execute_command("CLUSTER", "GETKEYSINSLOT", self._slot, 100):
            self._source.execute_command("MIGRATE", "127.0.0.1", self._port, "", 0, 5000, "KEYS", *keys)
        for client in (self._target, self._source):
            self._set(client, "NODE", self._ids[1])

    def _set(self, client: Any, state: str, node: str) -> None:
        client.execute_command("CLUSTER", "SETSLOT", self._slot, state, node)

    def _slot_is_at(self, client: Any, port: int) -> bool:
        rows = client.execute_command("CLUSTER", "SLOTS")
        return any(first <= self._slot <= last and node[1] == port for first, last, node, *_ in rows)
