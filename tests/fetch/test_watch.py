"""The deadline of an attempt, by a virtual clock."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from downloader.fetch.pace import Pace
from downloader.fetch.watch import Watch

TOTAL = "not done within the job's download_timeout of 10 s"


async def test_a_body_that_flows_on_and_on_ends_with_the_time_of_the_attempt(
    autojump_clock: MockClock,
) -> None:
    began = trio.current_time()
    watch = Watch(total_s=10)
    with watch.scope:
        watch.expect_flow(1000, 1)
        for received in range(1000, 100_000, 1000):
            await trio.sleep(0.5)
            watch.flow(received)
    assert (trio.current_time() - began, watch.reason) == (10, TOTAL)


async def test_waits_for_our_own_disk_count_for_the_time_of_the_attempt(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    watch = Watch(total_s=10)
    with watch.scope:
        watch.expect_flow(1000, 60)
        for _ in range(100):
            await trio.sleep(0.8)
            with watch.paused():
                await trio.sleep(0.3)
    assert (trio.current_time() - began, watch.reason) == (10, TOTAL)


async def test_a_pace_is_shared_and_does_not_count_as_slow(autojump_clock: MockClock) -> None:
    pace, began, ends = Pace(100), trio.current_time(), list[float]()

    async def read() -> bytes:
        await trio.lowlevel.checkpoint()
        return b"x" * 500

    async def receive() -> None:
        watch = Watch(total_s=60)
        with watch.scope:
            watch.expect_flow(1000, 1)
            for _ in range(2):
                await pace.read(read, watch)
                ends.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        nursery.start_soon(receive)
    assert ends == [5, 10, 15, 20]
