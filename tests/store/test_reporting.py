"""The last report of an instance."""

from __future__ import annotations

from typing import cast

import trio
import trio.testing
from structlog.testing import capture_logs

from downloader.config import RedisSettings
from downloader.errors import StoreUnavailable
from downloader.observe import COUNTERS, Counters
from downloader.service.roles import Report, log_work, reporting
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

    def timed(call: str, _seconds: float) -> None:
        if call == "report":
            reported.set()

    async with (
        asyncio_loop(),
        open_store(redis_settings, timed) as store,
        reporting(store, "me", "processor", lambda: ({}, {}), facts={}, interval_s=20),
    ):
        await reported.wait()
        assert 50_000 < raw.command("PTTL", raw.key("instance", "processor", "me")) <= 60_000


class Away:
    """A store that answers again after a time."""

    def __init__(self, until: float) -> None:
        self.until = until

    async def report(self, *_: object) -> None:
        if trio.current_time() < self.until:
            raise StoreUnavailable("gone")

    async def leave(self, *_: object) -> None: ...


async def test_an_outage_is_a_line_a_minute_and_one_at_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = cast("JobStore", Away(trio.current_time() + 121))
    with capture_logs() as lines:
        async with reporting(store, "me", "api", lambda: ({}, {}), facts={}, interval_s=5):
            await trio.sleep(200)
    assert [(line["event"], line.get("seconds")) for line in lines] == [
        *[("store.unavailable", None)] * 3,
        ("store.available", 125.0),
    ]


async def test_the_work_of_a_minute_is_a_line(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    counters = Counters(COUNTERS["processor"])
    counters.add("downloads_failed", 5, "dns")
    with capture_logs() as lines:
        await nursery.start(log_work, "processor", counters)
        counters.add("downloads_succeeded", 2)
        counters.add("downloads_failed", 1, "tls")
        await trio.sleep(200)
        nursery.cancel_scope.cancel()
    assert [dict(line) for line in lines] == [
        {
            "event": "work.done",
            "log_level": "info",
            "role": "processor",
            "downloads_succeeded": 2,
            "downloads_failed": 1,
        }
    ]
