"""A whole fleet on a Cluster under load: a node is dead, another frozen, a third replaced by a replica.

Fault F22: jobs in the shards of the other nodes go on; no job is lost, and none fails because of it.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest
import redis
import trio

from chaos.history import History, judge
from chaos.load import Load
from chaos.reading import read_fleet, read_keys, read_load, read_records, settled
from downloader.ids import shard_of
from downloader.store import CLUSTER_SHARDS, Keys
from servers.fleet import merged, open_fleet, say
from servers.origin import Origin
from servers.sink import Sink
from servers.valkey import Valkey
from servers.valkey_groups import SLOTS, is_replicated, open_cluster, until

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.row("F22"), pytest.mark.timeout(300)]

KEYS = Keys(prefix="downloader", shards=CLUSTER_SHARDS)
PRIMARIES = 5
"""Two of them may be away: the other three are the majority that a Cluster needs."""
KILLED, FROZEN, REPLICATED = 1, 2, 0
SETTLE_S = 60.0
LEASE_S = 8.0
AWAY_S = LEASE_S + 1.0
"""Longer than a lease, so that leases on the other nodes must be renewed in this time."""
JOBS = 40
"""How many jobs of the other nodes' shards must be accepted and done while nodes are away."""


def groups() -> dict[str, int]:
    """The name and the limit of an aggregation for each shard, in the order of the shards."""
    found: dict[int, str] = {}
    for number in range(10_000):
        found.setdefault(KEYS.aggregation_shard(f"g{number}"), f"g{number}")
    return {name: 1 + shard % 3 for shard, name in sorted(found.items())}


def node_of(shard: int, nodes: list[Valkey]) -> int:
    """The index of the primary that holds a shard at first."""
    with redis.Redis(port=nodes[0].port) as client:
        slot: int = client.execute_command("CLUSTER", "KEYSLOT", KEYS.key(shard, "layout"))
    return slot // -(-SLOTS // PRIMARIES)


async def test_f22_a_fleet_works_on_while_nodes_are_away(folder: Path, sink: Sink, origin: Origin) -> None:
    # By the default, a kill during an fsync loses writes that were acknowledged, leases among them.
    options = ("--appendonly", "yes", "--appendfsync", "always", "--cluster-node-timeout", "2000")
    with open_cluster(*options, primaries=PRIMARIES, replicas=1) as nodes:
        where = {name: node_of(shard, nodes) for shard, name in enumerate(groups())}
        settings = {"redis": {"url": f"redis://127.0.0.1:{nodes[0].port}", "cluster": True, "timeout": 2.0}}
        async with open_fleet(
            folder, None, merged({"processor": {"lease": LEASE_S}, "notifier": {"lease": LEASE_S}}, settings)
        ) as fleet:
            *_, api = await fleet.start_all("processor", "processor", "notifier", "api")
            [listening] = api.events("api.listening")
            load = Load(origin, sink, random.Random(22), lambda: [listening["port"]], groups(), backlog=2)

            async def goes_on(*away: int, seconds: float = 0.0) -> None:
                """Wait until new jobs of the shards that are not away are done, and `seconds` are over."""
                before, began = set(load.accepted), trio.current_time()

                def done() -> int:
                    new = load.accepted.keys() - before
                    return sum(
                        where[load.accepted[one].group] not in away for one in new & sink.by_job().keys()
                    )

                await sink.until(
                    lambda: done() >= JOBS and trio.current_time() - began > seconds, seconds=SETTLE_S
                )
                say(f"{done()} jobs in {trio.current_time() - began:.1f} s without nodes {away}")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(load.run)
                await goes_on()
                frozen = nodes[FROZEN].process
                assert frozen is not None
                nodes[KILLED].kill()
                frozen.send_signal(signal.SIGSTOP)
                try:
                    await goes_on(KILLED, FROZEN, seconds=AWAY_S)
                finally:
                    frozen.send_signal(signal.SIGCONT)
                await trio.to_thread.run_sync(nodes[KILLED].start)
                await goes_on()
                # It is killed when its replica has all its data: `memory` promises nothing else.
                with redis.Redis(port=nodes[REPLICATED].port) as client:
                    client.execute_command("CLIENT", "PAUSE", 10_000, "WRITE")
                    await trio.to_thread.run_sync(until, lambda: is_in_step(client), "a replica in step")
                nodes[REPLICATED].kill()
                await goes_on(REPLICATED)
                # The replica has taken over its shards.
                await goes_on()
                load.stopping = True
            await settled(load.accepted, listening["port"], seconds=SETTLE_S)
            history = History()
            nodes.pop(REPLICATED)
            clients = [redis.Redis(port=node.port, decode_responses=True) for node in nodes]
            for client in clients:
                await read_records(history, client, listening["port"])
            await fleet.stop_all()
            for client in clients:
                read_keys(history, client)
                client.close()
            read_fleet(history, fleet)
            read_load(history, load, fleet)
            assert judge(history) == [], load.slots.exceeded
            swept = fleet.all_events("sweep.recovered")
            assert [
                one for one in swept if node_of(shard_of(one["job_id"], CLUSTER_SHARDS), nodes) == 3
            ] == []
            assert fleet.all_events("job.poison") == []


def is_in_step(primary: redis.Redis) -> bool:
    """Whether the replica has all data of the primary."""
    info = primary.info("replication")
    return is_replicated(primary) and info["slave0"]["offset"] == info["master_repl_offset"]
