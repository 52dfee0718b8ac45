"""The last report of an instance."""

from __future__ import annotations

import trio

from downloader.config import RedisSettings
from downloader.observe import COUNTERS, Counters
from downloader.service.roles import Report, reporting
from downloader.store import JobStore, asyncio_loop, open_store
from servers.raw_store import RawStore


async def test_the_last_counts_are_reported_at_the_end(store: JobStore) -> None:
    counters, asked = Counters(COUNTERS["processor"]), trio.Event()

    def report() -> Report:
        asked.set()
        return {}, counters.series()

    async with reporting(store, "me", "processor", report, facts={}, interval_s=60):
        await asked.wait()
        counters.add("bytes", 7)
    assert await store.totals("processor") == {"bytes": 7}
    assert await store.reports("processor") == []


async def test_an_instance_counts_as_gone_after_three_intervals(
    raw: RawStore, redis_settings: RedisSettings
) -> None:
    reported = trio.Event()

    def timed(_call: str, _seconds: float) -> None:
        reported.set()

    async with (
        asyncio_loop(),
        open_store(redis_settings, timed) as store,
        reporting(store, "me", "processor", lambda: ({}, {}), facts={}, interval_s=20),
    ):
        await reported.wait()
        assert 50_000 < raw.command("PTTL", raw.key("instance", "processor", "me")) <= 60_000
