"""The last report of an instance."""

from __future__ import annotations

import trio

from downloader.observe import COUNTERS, Counters
from downloader.service.reports import Report, reporting
from downloader.store import JobStore


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
