"""A store that loses the table of the limits of hosts while downloads run and wait. Faults F10, F31."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import trio

from downloader.testing import TcpProxy, open_tcp_proxy
from servers.fleet import BRIEF, History, job_for, merged, open_fleet
from servers.origin import Origin, gate, open_origin, respond
from servers.ports import spare_ports
from servers.sink import Sink
from servers.valkey import Valkey
from servers.valkey_groups import is_replicated, until

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(120)]

LIMIT = 2
LIMITED = {'processor.hosts."127.0.0.1"': {"limit": LIMIT}}
ELSEWHERE = "127.0.0.2"
"""A host without a limit."""


@contextmanager
def client_of(server: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(server.socket), decode_responses=True) as client:
        yield client


def tables(client: redis.Redis) -> list[str]:
    keys = [str(key) for key in client.keys("*host_limits:*")]
    client.config_resetstat()  # `History` looks for commands that no process may send
    return keys


class Store:
    """A primary with a replica, and the address at which the fleet finds the primary. Its methods block."""

    def __init__(self, primary: Valkey, replica: Valkey, address: TcpProxy) -> None:
        self.primary = primary
        self.replica = replica
        self.address = address

    def lose_table(self) -> None:
        with client_of(self.primary) as client:
            [table] = tables(client)
            client.delete(table)

    def lose_everything(self) -> None:
        with client_of(self.primary) as client:
            client.flushall()
            assert tables(client) == []

    def move(self) -> None:
        """Make the replica the primary, without the table. Open connections still lead to the old one."""
        with client_of(self.primary) as old, client_of(self.replica) as new:
            until(lambda: is_replicated(old), "a replica in step")
            assert self.primary.command("FAILOVER", "TO", "127.0.0.1", str(self.replica.port)) == b"+OK\r\n"
            until(lambda: new.info("replication")["role"] == "master", "a new primary")
            new.delete(*tables(new))
        self.primary, self.address.target = self.replica, self.replica.socket


@pytest.mark.row("F10", "F31")
@pytest.mark.parametrize("lose", [Store.lose_table, Store.lose_everything, Store.move])
async def test_the_limit_of_a_host_holds_after_the_store_has_lost_the_table(
    folder: Path, sink: Sink, origin: Origin, lose: Callable[[Store], None]
) -> None:
    gates = {"/before": trio.Event(), "/after": trio.Event()}
    for path, event in gates.items():
        origin.on(path, gate(event, respond(200, path.encode())))

    def jobs(path: str) -> list[dict[str, Any]]:
        """More than the host may run, of two aggregations that may."""
        return [job_for(origin.url(path), sink.url(), group=group, limit=4) for group in "ab" for _ in "1234"]

    ports = spare_ports(2)
    with (
        Valkey("--repl-diskless-sync-delay", "0", port=ports[0]) as primary,
        Valkey("--replicaof", "127.0.0.1", str(ports[0]), port=ports[1]) as replica,
    ):
        async with (
            open_origin(host=ELSEWHERE) as elsewhere,
            open_tcp_proxy(primary.socket) as address,
            open_fleet(folder, primary, merged(BRIEF, LIMITED)) as fleet,
        ):
            store = Store(primary, replica, address)
            fleet.tables["redis"]["url"] = f"redis://127.0.0.1:{address.port}"
            processor, *_ = await fleet.start_all("processor", "notifier", "api")
            ids = await fleet.post_all(jobs("/before"))
            await origin.seen("/before", LIMIT)
            await trio.to_thread.run_sync(lose, store)
            if lose is Store.lose_everything:
                await processor.event("lease.lost", count=LIMIT)
                fleet.accepted.clear()
                ids = []
            gates["/before"].set()
            await sink.heard_of(*ids, seconds=30)

            ids = [await fleet.insist(**job) for job in jobs("/after")]
            await origin.wait_until(lambda: origin.current["/after"] == LIMIT, seconds=30)
            # Leased after the others, so the processor has had its chance to start too many of these.
            ids.append(
                await fleet.post(**job_for(elsewhere.url("/bytes/1", host=ELSEWHERE), sink.url(), group="c"))
            )
            await sink.heard_of(ids[-1])
            gates["/after"].set()
            await sink.heard_of(*ids, seconds=30)
            await fleet.stop_all()
            assert (origin.peak["/before"], origin.peak["/after"]) == (LIMIT, LIMIT)
            with client_of(store.primary) as client:
                assert len(tables(client)) == 1
            with History(fleet, sink, url=store.primary.url) as history:
                assert history.check()["succeeded"] == len(fleet.accepted)
