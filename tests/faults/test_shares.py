"""An aggregation or a client with very slow peers leaves slots for the others. Hostile input H21 and H28."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from servers.fleet import START_S, Tables, job_for, open_fleet, say
from servers.origin import Exchange, Origin
from servers.sink import Sink, open_sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(180)]

SLOTS = 256
ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"
DRIP_BYTES = 2048
"""Bytes per second: twice the rate below which a download counts as stalled."""


async def drip(exchange: Exchange) -> None:
    """Answer with a body that takes hours but is never so slow that it counts as stalled."""
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
    while True:
        await exchange.send(bytes(DRIP_BYTES))
        await trio.sleep(1)


@pytest.mark.row("H21")
async def test_h21_downloads_that_drip_leave_room_for_anothers(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    slow = job_for(origin.on("/drip", drip), sink.url(), group="slow", limit=2 * SLOTS)
    async with open_fleet(folder, server, {"processor": {"concurrency": SLOTS}}) as fleet:
        await fleet.start_all("api", "processor", "notifier")
        await fleet.post_all([slow] * (SLOTS + 20))
        await origin.wait_until(lambda: origin.current["/drip"] == SLOTS, seconds=START_S)

        # `test_an_aggregation_gives_way_to_another_within_a_second` checks with a virtual clock how soon it
        # starts. This test checks that it starts, and how many downloads are handed back for it.
        began = trio.current_time()
        job_id = await fleet.post(**job_for(origin.url("/bytes/10"), sink.url(), group="other"))
        await origin.wait_until(lambda: bool(origin.asked("/bytes/10")), seconds=START_S)
        say(f"started after {trio.current_time() - began:.2f} s")
        assert origin.current["/drip"] >= SLOTS - 1
        [notice] = await sink.heard_of(job_id)
        assert notice.payload["success"]

        # One slow download was handed back, and its attempt was not counted.
        [cut] = fleet.all_events("job.released")
        assert (await fleet.job(cut["job_id"]))["attempts"] == 0


@pytest.mark.row("H28")
async def test_h28_a_client_with_slow_origins_and_receivers_leaves_room_for_another(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    hosts = [f"127.2.0.{number}" for number in range(1, 21)]
    tables: Tables = {
        "[ api.tokens]": {"name": "alice", "token": ALICE, "scopes": ["submit"]},
        "[api.tokens]": {"name": "bob", "token": BOB, "scopes": ["submit"]},
        "processor": {"concurrency": SLOTS},
        "notifier": {"concurrency": SLOTS},
        "backends.http": {"timeout": 300.0},  # no slow receiver gives its slot back
    }
    async with open_sink(hosts) as slow, open_fleet(folder, server, tables) as fleet:
        await fleet.start_all("api", "processor", "notifier")

        async def post_as(token: str, jobs: Sequence[dict[str, Any]]) -> list[str]:
            lines = "\n".join(map(json.dumps, jobs))
            headers = {"Authorization": f"Bearer {token}"}
            answer = await fleet.client.post("/downloads", content=lines, headers=headers)
            return [json.loads(line)["id"] for line in answer.text.splitlines()]

        calling = [
            job_for(origin.url("/bytes/1"), slow.url("/hang", host=host), group=f"{host} {number}")
            for host in hosts
            for number in range(4)
        ]
        await post_as(ALICE, calling)
        await slow.until(lambda: len(slow.received) >= SLOTS // 4)
        await origin.wait_until(lambda: len(origin.asked("/bytes/1")) == len(calling), seconds=START_S)
        drips = origin.on("/drip", drip)
        await post_as(ALICE, [job_for(drips, sink.url(), group=f"slow {number}") for number in range(300)])
        await origin.wait_until(lambda: origin.current["/drip"] == SLOTS, seconds=START_S)

        began = trio.current_time()
        [job_id] = await post_as(BOB, [job_for(origin.url("/bytes/10"), sink.url(), group="other")])
        [notice] = await sink.heard_of(job_id)
        say(f"called back after {trio.current_time() - began:.2f} s")
        assert notice.payload["success"]
        assert len(slow.received) == SLOTS // 4
