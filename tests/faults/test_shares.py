"""An aggregation with very slow downloads leaves slots for the others. Hostile input H21."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from servers.fleet import START_S, job_for, open_fleet, say
from servers.origin import Exchange, Origin
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(180)]

SLOTS = 256
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
