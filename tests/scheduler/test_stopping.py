"""The two-phase stop: what ends when, and that nothing stays leased."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from downloader.errors import StorageError
from downloader.ids import new_id
from downloader.model import JobSpec, Kind, Verdict
from downloader.scheduler import Stop, run_reaper
from downloader.scheduler.reaper import DELETION_S, DELETIONS, LOOK_S
from servers.fake_store import FakeStore, refuse
from servers.scheduling import LEASE_S, Jobs, Process, Stuck, scheduling

GRACE_S = 15.0


async def test_a_stop_ends_leasing_at_once(autojump_clock: MockClock, store: FakeStore) -> None:
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await process.settle_down()
        process.stop.begin(GRACE_S)
        process.add("b")
        await process.settle_down()
        assert set(process.work.working) == {job_id}
        process.work.finish(job_id)
        await process.ended.wait()
        assert process.work.ends == [(job_id, Verdict.SUCCEEDED)]
        assert len(store.pending["b"]) == 1


async def test_work_in_flight_at_the_deadline_is_handed_back(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store) as process:
        done, cut = process.add("a", 2)
        await process.settle_down()
        began = trio.current_time()
        process.stop.begin(GRACE_S)
        await trio.sleep(GRACE_S / 2)
        process.work.finish(done)
        await process.ended.wait()
        assert trio.current_time() - began == pytest.approx(GRACE_S)
        assert store.settled == [("finish", done), ("release", cut)]
        assert store.held == {}


@pytest.mark.parametrize("answered_after_s", [GRACE_S / 2, GRACE_S + 1])
async def test_a_lease_that_is_answered_late_is_handed_back(
    autojump_clock: MockClock, store: FakeStore, answered_after_s: float
) -> None:
    async def late() -> None:
        await trio.sleep(answered_after_s)

    async with scheduling(store) as process:
        await process.settle_down()
        store.after["lease"] = late
        [job_id] = process.add("a")
        await process.settle_down()
        process.stop.begin(GRACE_S)
        await process.ended.wait()
        assert store.held == {}
        assert store.settled == [("release", job_id)]
        # One that comes in time is worked on for the rest of it.
        assert bool(process.work.begun) == (answered_after_s < GRACE_S)


async def test_a_lease_whose_answer_was_lost_is_asked_for_and_handed_back(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async def lose_it() -> None:
        process.stop.begin(GRACE_S)
        del store.after["lease"]
        await refuse()

    async with scheduling(store) as process:
        await process.settle_down()
        store.after["lease"] = lose_it
        [job_id] = process.add("a")
        process.work.finish(job_id)
        await process.ended.wait()
        assert store.asked[-1] == 0
        assert store.held == {}


@pytest.mark.parametrize("at_stop", [True, False])
async def test_work_may_lease_what_is_due_at_a_stop(
    autojump_clock: MockClock, store: FakeStore, *, at_stop: bool
) -> None:
    """So the callbacks of a process's last downloads do not wait for its next start."""
    [job_id] = store.add("a")
    process = Process(store, Jobs(Kind.DOWNLOAD, concurrency=4, leases_at_stop=at_stop))
    process.work.finish(job_id)
    process.stop.begin(GRACE_S)
    await process.run()
    assert [ended for ended, _ in process.work.ends] == ([job_id] if at_stop else [])


@pytest.mark.parametrize("call", ["release", "lease"])
async def test_a_store_that_does_not_answer_does_not_hold_up_a_stop(
    autojump_clock: MockClock, store: FakeStore, call: str
) -> None:
    async with scheduling(store) as process:
        process.add("a")
        await process.settle_down()
        began = trio.current_time()
        store.before[call] = refuse
        process.stop.begin(GRACE_S)
        await process.ended.wait()
        assert GRACE_S <= trio.current_time() - began < GRACE_S + 5 < LEASE_S


@pytest.mark.row("F25")
async def test_work_that_hangs_is_handed_back_at_the_deadline(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    work = Stuck(Kind.DOWNLOAD, concurrency=4)
    process = Process(store, work)
    [job_id] = process.add("a")
    async with trio.open_nursery() as nursery:
        await nursery.start(process.run)
        await process.settle_down()
        process.stop.begin(GRACE_S)
        await trio.sleep(GRACE_S + 1)
        assert store.settled == [("release", job_id)]
        assert store.held == {}
        assert not work.working[job_id]()
        await process.ended.wait()
    assert work.ends == [(job_id, Verdict.RELEASE)]
    assert work.losses == 0


async def test_a_second_stop_does_not_move_the_deadline(autojump_clock: MockClock, store: FakeStore) -> None:
    async with scheduling(store) as process:
        process.add("a")
        await process.settle_down()
        began = trio.current_time()
        process.stop.begin(GRACE_S)
        await trio.sleep(GRACE_S / 2)
        process.stop.begin(GRACE_S)
        await process.ended.wait()
        assert trio.current_time() - began == pytest.approx(GRACE_S)


# The reaper


def deletable(count: int) -> list[JobSpec]:
    return [JobSpec(id=new_id(0, 1), aggr_id="a", aggr_limit=1, url="http://x/") for _ in range(count)]


async def test_the_reaper_deletes_and_removes(autojump_clock: MockClock, store: FakeStore) -> None:
    specs = store.reapable[:] = deletable(20)
    stop = Stop()
    deleted: list[str] = []

    async def delete(spec: JobSpec, _: object) -> None:
        await trio.sleep(1)
        deleted.append(spec.id)
        if spec is specs[3]:
            raise StorageError("busy")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_reaper(store.typed(), delete, stop=stop))
        await trio.sleep(10)
        stop.begin(0)
    assert len(deleted) == 20
    assert set(store.removed) == {spec.id for spec in specs} - {specs[3].id}


async def test_the_reaper_ends_by_the_stop_s_deadline(autojump_clock: MockClock, store: FakeStore) -> None:
    """However many slow deletions it has in hand; they are given to another reaper later."""
    store.reapable[:] = deletable(200)
    stop = Stop()

    async def delete(*_: object) -> None:
        await trio.sleep(15)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_reaper(store.typed(), delete, stop=stop))
        await trio.sleep(1)
        began = trio.current_time()
        stop.begin(GRACE_S + 1)
    assert trio.current_time() - began == GRACE_S + 1


async def test_deletions_are_few_at_once_and_one_that_hangs_holds_up_no_other(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    hung, *others = store.reapable[:] = deletable(3 * DELETIONS)
    stop = Stop()
    at_once: list[int] = []
    limit = trio.CapacityLimiter(1000)

    async def delete(spec: JobSpec, _: object) -> None:
        async with limit:
            at_once.append(limit.borrowed_tokens)
            await trio.sleep(math.inf if spec is hung else 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_reaper(store.typed(), delete, stop=stop))
        await trio.sleep(DELETION_S + 3 * DELETIONS)
        stop.begin(0)
    assert max(at_once) == DELETIONS
    assert sorted(store.removed) == sorted(spec.id for spec in others)


async def test_the_reaper_goes_on_when_the_store_answers_again(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    [spec] = store.reapable[:] = deletable(1)
    store.before["reap"] = refuse
    stop = Stop()

    async def delete(*_: object) -> None:
        await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: run_reaper(store.typed(), delete, stop=stop))
        await trio.sleep(1)
        del store.before["reap"]
        await trio.sleep(LOOK_S)
        stop.begin(0)
    assert store.removed == [spec.id]


async def test_a_cancel_while_a_thread_hangs_raises_no_other_error(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    """Else the end of the process would be reported as this error and not as its cause."""
    work = Stuck(Kind.DOWNLOAD, concurrency=4)
    work.hangs_s = 2 * LEASE_S
    process = Process(store, work)
    async with trio.open_nursery() as nursery:
        await nursery.start(process.run)
        process.add("a")
        await process.settle_down()
        nursery.cancel_scope.cancel()
