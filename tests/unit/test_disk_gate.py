from __future__ import annotations

import threading

import pytest
import trio

from downloader.service.process import LOOK_S, DiskGate


@pytest.mark.row("F13")
async def test_it_closes_at_the_high_mark_and_opens_below_the_low_one() -> None:
    used = iter((94.9, 95, 94, 90, 89.9, 94))
    gate = DiskGate(lambda: next(used), high=95, low=90)
    seen = []
    for _ in range(6):
        await gate.look()
        seen.append(gate())
        assert (gate.trouble() == "") is gate()
        assert gate() or f"{gate.trouble()}".startswith("the spool's disk is 9")
    assert seen == [True, False, False, False, True, True]


async def test_it_looks_once_a_second_however_often_it_is_asked(
    mock_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    looks = []
    looked = trio.Event()

    def read() -> float:
        looks.append(True)
        trio.from_thread.run_sync(looked.set)
        return 50

    gate = DiskGate(read, high=95, low=90)
    await nursery.start(gate.run)
    for number in range(1, 4):
        await looked.wait()
        looked = trio.Event()
        await trio.testing.wait_all_tasks_blocked(0.01)
        for _ in range(100):
            assert gate()
        mock_clock.jump(LOOK_S / 2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(looks) == number
        mock_clock.jump(LOOK_S / 2)
    nursery.cancel_scope.cancel()


@pytest.mark.row("F25")
async def test_a_disk_that_hangs_holds_nothing_up() -> None:
    """Leases are renewed in the same event loop, so no task of it waits for the disk."""
    hanging, answers = threading.Event(), threading.Event()

    def read() -> float:
        hanging.set()
        answers.wait(60)
        return 99

    gate = DiskGate(read, high=95, low=90)
    try:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(gate.run)
                await trio.to_thread.run_sync(hanging.wait)
                assert gate()
                nursery.cancel_scope.cancel()
    finally:
        answers.set()


async def test_a_disk_that_hangs_delays_no_start(nursery: trio.Nursery) -> None:
    answers = threading.Event()

    def read() -> float:
        answers.wait(60)
        return 99

    gate = DiskGate(read, high=95, low=90)
    try:
        with trio.fail_after(10):
            await nursery.start(gate.run)
    finally:
        answers.set()
        nursery.cancel_scope.cancel()
