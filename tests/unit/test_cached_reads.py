"""Slow reads of all aggregations are cached; quick ones are always new."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from downloader.api.search import AGE_MAX_S, QUICK_READ_S, Cached


class Reads:
    """Counts the reads, each of which takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.count = 0
        self.seconds = seconds

    async def __call__(self) -> int:
        self.count += 1
        await trio.sleep(self.seconds)
        return self.count


async def test_a_slow_read_is_cached(autojump_clock: MockClock) -> None:
    reads = Reads(seconds=1)
    cached = Cached(reads)
    assert [await cached.get(), await cached.get()] == [1, 1]
    await trio.sleep(AGE_MAX_S)
    assert await cached.get() == 2


async def test_a_quick_read_is_not_cached(autojump_clock: MockClock) -> None:
    reads = Reads(seconds=QUICK_READ_S / 2)
    cached = Cached(reads)
    assert [await cached.get(), await cached.get()] == [1, 2]
