"""What the loop leases, and when: room first, turns, shares."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from downloader.model import Kind, Lease, Verdict
from downloader.scheduler import StillOurs
from downloader.scheduler.leases import MARGIN
from downloader.scheduler.limits import HOLD_S
from downloader.scheduler.loop import MAX_BACKOFF_S, SHARE_LOOK_S
from downloader.store import LOOK_S, Settlement
from downloader.store.reader import RESUBSCRIBE_S
from servers.fake_store import FakeStore, refuse
from servers.scheduling import LEASE_S, Jobs, Process, Stuck, scheduling

DELAY_S = 20.0

RESUME_S = 5.0
"""Within which clients go on when the store is back."""


async def test_no_more_is_leased_than_there_is_room_for(autojump_clock: MockClock, store: FakeStore) -> None:
    async with scheduling(store, concurrency=4) as process:
        ids = process.add("a", 3) + process.add("b", 3)
        await process.settle_down()
        assert len(process.work.working) == len(store.held) == 4
        calls = store.calls["lease"]
        await trio.sleep(60)
        assert store.calls["lease"] == calls, "a full process asks for nothing"
        process.work.finish(*ids)
        await process.settle_down()
        assert {verdict for _, verdict in process.work.ends} == {Verdict.SUCCEEDED}
        assert len(process.work.ends) == 6
        assert store.held == {}


async def test_a_wake_up_starts_a_job_at_once(autojump_clock: MockClock, store: FakeStore) -> None:
    async with scheduling(store) as process:
        await process.settle_down()
        began = trio.current_time()
        process.add("a")
        await process.settle_down()
        assert process.work.working
        assert trio.current_time() == began


async def steady(process: Process, names: list[str], gap_s: float) -> int:
    """Let jobs come one by one, each done 20 ms later; returns the lease calls that were made."""
    before = process.store.calls["lease"]
    async with trio.open_nursery() as nursery:

        async def one(name: str) -> None:
            [job_id] = process.add(name, limit=1 if name == "limited" else 99)
            await trio.sleep(0.02)
            process.work.finish(job_id)

        for name in names:
            nursery.start_soon(one, name)
            await trio.sleep(gap_s)
    await trio.sleep(1)
    return process.store.calls["lease"] - before


async def test_jobs_that_come_often_share_lease_calls(autojump_clock: MockClock, store: FakeStore) -> None:
    async with scheduling(store, concurrency=64) as process:
        await process.settle_down()
        rare = await steady(process, ["a"] * 20, gap_s=0.05)
        often = await steady(process, ["a"] * 200, gap_s=0.002)
        assert rare >= 20, "each goes at once"
        assert often < 0.6 * 200
        assert len(process.work.ends) == 220


@pytest.mark.parametrize("kind", Kind)
async def test_a_job_that_meets_no_other_hardly_ever_waits_however_often_one_comes(
    autojump_clock: MockClock, store: FakeStore, kind: Kind
) -> None:
    """A client that sends a job when the last one is done: most jobs a second, and none is beside another."""
    waits = 0
    async with scheduling(store, kind=kind, concurrency=64) as process:
        await process.settle_down()
        for _ in range(300):
            [job_id] = process.add("a", limit=99)
            await process.settle_down()
            if job_id not in process.work.working:
                waits += 1
                await trio.sleep(0.006)
            process.work.finish(job_id)
            await process.settle_down()
            if store.held:
                waits += 1
                await trio.sleep(0.006)
            await trio.sleep(0.003)
    assert 0 < waits <= 24, "1, 2, 4 ... 64 go at once between two calls that wait"


async def test_a_queue_at_its_limit_does_not_linger(autojump_clock: MockClock, store: FakeStore) -> None:
    """Else one job after the other would wait twice."""
    async with scheduling(store, concurrency=64) as process:
        ids = process.add("a", 300, limit=1)
        begun = trio.current_time()
        for _ in ids:
            await process.settle_down()
            [job_id] = process.work.working
            process.work.finish(job_id)
            await process.settle_down()
            process.wake.set()  # as the store does for a slot that is free
        assert len(process.work.ends) == 300
        assert trio.current_time() == begun


async def test_a_full_process_does_not_linger_while_tasks_wait(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    """Else slots that tasks wait for stand idle."""
    async with scheduling(store, concurrency=64) as process:
        ids = process.add("a", 300)
        await process.settle_down()
        begun = trio.current_time()
        while len(process.work.ends) < len(ids) - 64:
            [job_id, *_] = process.work.working
            process.work.finish(job_id)
            await process.settle_down()
        assert trio.current_time() == begun


async def test_while_tasks_wait_half_of_the_slots_start_before_the_next_lease_call(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    """Else all slots that become free at once wait for the store at once, time and again."""
    async with scheduling(store, concurrency=64) as process:
        process.add("a", 300)
        await process.settle_down()
        store.asked.clear()
        process.work.finish(*process.work.working)
        await process.settle_down()
        assert store.asked == [32, 32]
        assert len(process.work.working) == 64


async def test_a_process_with_many_slots_shares_calls_also_while_tasks_wait(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store, concurrency=256) as process:
        process.add("a", 600)
        await process.settle_down()
        calls = store.calls["lease"]
        for job_id in list(process.work.working)[:20]:
            process.work.finish(job_id)
            await process.settle_down()
        await trio.sleep(1)
        assert len(process.work.ends) == 20
        assert len(process.work.working) == 256
        assert store.calls["lease"] - calls == 1


async def test_a_lost_wake_up_delays_a_job_by_one_look(autojump_clock: MockClock, store: FakeStore) -> None:
    async with scheduling(store) as process:
        await process.settle_down()
        began = trio.current_time()
        store.add("a")
        await trio.sleep(LOOK_S)
        await process.settle_down()
        assert process.work.working
        assert trio.current_time() - began == LOOK_S


async def test_it_looks_no_earlier_than_the_store_says(autojump_clock: MockClock, store: FakeStore) -> None:
    store.look_s = 6 * LOOK_S
    async with scheduling(store) as process:
        await process.settle_down()
        await trio.sleep(store.look_s - 1)
        assert store.calls["lease"] == 1
        await trio.sleep(1)
        await process.settle_down()
        assert store.calls["lease"] == 2


async def test_it_looks_when_it_was_told_to(autojump_clock: MockClock, store: FakeStore) -> None:
    """At the earliest of several times, and also if it has looked in between."""
    async with scheduling(store) as process:
        await process.settle_down()
        began = trio.current_time()
        for delay_s in (2, 1.5, 3):
            process.wake.set(delay_s)
        process.wake.set()
        await process.settle_down()
        store.add("a")
        await trio.sleep(1.5)
        await process.settle_down()
        assert process.work.working
        assert trio.current_time() - began == 1.5


async def test_others_are_woken_while_it_may_lease_nothing_and_when_it_stops(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store) as process:
        await process.settle_down()
        assert store.calls["withdraw"] == 0
        process.work.open = False
        process.wake.set()
        await process.settle_down()
        assert store.calls["withdraw"] == 1
        process.work.open = True
        process.stop.begin(1)
        await process.ended.wait()
        assert store.calls["withdraw"] == 2


async def test_nothing_is_leased_while_nothing_may_be(autojump_clock: MockClock, store: FakeStore) -> None:
    async with scheduling(store) as process:
        await process.settle_down()
        process.work.open = False
        process.add("a")
        await trio.sleep(60)
        assert not store.held
        process.work.open = True  # which wakes nobody
        await trio.sleep(LOOK_S)
        await process.settle_down()
        assert store.held


async def test_a_queue_whose_former_work_still_unwinds_gets_no_second_slot(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    """The store took the lease away and grants it anew, before the old work has ended here."""
    async with scheduling(store) as process:
        [job_id] = process.add("a", limit=1)
        await process.settle_down()
        taken = store.held.pop(job_id)
        store.pending["a"].append(taken)
        process.wake.set()
        await process.settle_down()
        assert process.work.begun == [job_id]
        assert ("release", job_id) in store.settled


async def test_a_raised_limit_counts_at_once(autojump_clock: MockClock, store: FakeStore) -> None:
    async with scheduling(store) as process:
        first = process.add("a", limit=1)
        await process.settle_down()
        second = process.add("a", limit=2)
        await process.settle_down()
        assert process.work.begun == first + second
        assert store.settled == []


async def test_a_slot_is_freed_when_its_work_ends_not_when_it_is_settled(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    """The store gives it away as soon as it knows: a lease of the same queue may come before the answer."""
    store.after["finish"] = trio.sleep_forever
    async with scheduling(store) as process:
        first, second = process.add("a", 2, limit=1)
        await process.settle_down()
        process.work.finish(first)
        await process.settle_down()
        process.wake.set()
        await process.settle_down()
        assert process.work.begun == [first, second]
        assert store.settled == [("finish", first)]


async def test_it_asks_again_soon_after_the_store_did_not_answer(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    store.before["lease"] = refuse
    async with scheduling(store) as process:
        process.add("a")
        await trio.sleep(30)
        assert store.calls["lease"] > 10
        del store.before["lease"]
        await trio.sleep(MAX_BACKOFF_S)
        await process.settle_down()
        assert process.work.working


@pytest.mark.row("F9")
@pytest.mark.parametrize("kind", Kind)
async def test_after_the_store_was_away_a_job_waits_for_two_short_pauses(
    autojump_clock: MockClock, store: FakeStore, kind: Kind
) -> None:
    """One until a result is settled, one until the next lease, and none has grown beyond its limit."""
    store.before["lease"] = store.before["finish"] = store.before["close_callback"] = refuse
    async with scheduling(store, kind=kind) as process:
        del store.before["lease"]
        [first] = process.add("a")
        await process.settle_down()
        store.before["lease"] = refuse
        process.work.finish(first)
        store.add("a", kind=kind)
        await trio.sleep(LEASE_S * (1 - 2 * MARGIN))
        assert (store.settled, process.work.begun) == ([], [first])
        store.before.clear()
        await trio.sleep(MAX_BACKOFF_S)
        await process.settle_down()
        assert len(store.settled) == 1
        assert len(process.work.begun) == 2
        # A job settles its download, leases its callback and settles it; wake-ups come after a subscription.
        assert 3 * MAX_BACKOFF_S + RESUBSCRIBE_S < RESUME_S / 2, "calls and work take time too"


async def test_one_aggregation_has_all_slots_while_nobody_else_waits(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store, concurrency=8) as process:
        process.add("a", 20)
        await trio.sleep(60)
        assert store.running("a") == 8
        assert not process.work.cancelled


@pytest.mark.row("H21")
async def test_an_aggregation_gives_way_to_another_within_a_second(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store, concurrency=8) as process:
        ids = process.add("a", 20)
        await process.settle_down()
        oldest = ids[:7]
        process.add("b")
        await trio.sleep(1)
        await process.settle_down()
        assert (store.running("a"), store.running("b")) == (7, 1)
        # The newest of its downloads, which loses least; the attempt does not count.
        assert set(process.work.working) >= set(oldest)
        assert store.settled == [("release", ids[7])]


async def test_it_keeps_half_however_many_others_wait(autojump_clock: MockClock, store: FakeStore) -> None:
    async with scheduling(store, concurrency=8) as process:
        process.add("a", 20)
        await process.settle_down()
        for number in range(20):
            process.add(f"b{number}")
        await trio.sleep(10)
        assert store.running("a") == 4
        assert len(store.held) == 8


async def test_it_keeps_half_also_if_what_it_hands_back_does_not_end(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    process = Process(store, Stuck(Kind.DOWNLOAD, concurrency=8))
    async with trio.open_nursery() as nursery:
        await nursery.start(process.run)
        process.add("a", 20)
        await process.settle_down()
        process.add("b")
        await trio.sleep(20 * SHARE_LOOK_S)
        assert sum(held.work.cancel_called for held in process.held) == 4
        process.stop.begin(0)


async def test_a_silent_store_does_not_end_the_check_of_shares(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store, concurrency=8) as process:
        process.add("a", 20)
        await process.settle_down()
        store.before["waiting"] = refuse
        process.add("b")
        await trio.sleep(2)
        assert store.running("b") == 0
        del store.before["waiting"]
        await trio.sleep(1)
        assert store.running("b") == 1


async def test_it_is_held_to_its_share_for_a_while(autojump_clock: MockClock, store: FakeStore) -> None:
    """Else each short job of another would cut off one of its downloads, which costs its origin a request."""
    async with scheduling(store, concurrency=8) as process:
        process.add("a", 50)
        await process.settle_down()
        others = [process.add(f"b{number}")[0] for number in range(4)]
        await trio.sleep(2 * SHARE_LOOK_S)
        process.work.finish(*others)
        await trio.sleep(HOLD_S / 2)
        assert (store.running("a"), len(store.held)) == (4, 4)
        [late] = process.add("c")
        await process.settle_down()
        assert late in process.work.working
        process.work.finish(late)
        await trio.sleep(HOLD_S / 2 + LOOK_S)
        assert store.running("a") == 8
        assert len(process.work.cancelled) == 4


async def test_a_token_gives_way_to_another_within_a_second(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store, concurrency=8) as process:
        for number in range(300):
            process.add(f"drips {number}", token="alice")
        await process.settle_down()
        assert len(process.work.working) == 8, "a lone token has the whole process"
        began = trio.current_time()
        others = [process.add(f"other {number}", token="bob")[0] for number in range(2)]
        while not set(others) <= process.work.working.keys():
            await trio.sleep(0.1)
            assert trio.current_time() - began < 3 * SHARE_LOOK_S
        assert len(process.work.cancelled) == 2


async def test_callbacks_of_a_token_leave_a_quarter_of_the_slots(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store, kind=Kind.CALLBACK, concurrency=16) as process:
        for number in range(300):
            process.add(f"hangs {number}", token="alice")
        await process.settle_down()
        assert len(process.work.working) == 12
        [other] = process.add("new", token="bob", proven=False)
        await trio.sleep(SHARE_LOOK_S)
        await process.settle_down()
        assert other in process.work.working
        # Without an answer yet, a quarter of the slots.
        for job_id in list(process.work.working):
            process.work.finish(job_id)
        store.pending.clear()
        for number in range(300):
            process.add(f"silent {number}", token="alice", proven=False)
        await trio.sleep(SHARE_LOOK_S)
        await process.settle_down()
        assert len(process.work.working) == 4
        [other] = process.add("newer", token="bob", proven=False)
        await trio.sleep(SHARE_LOOK_S)
        await process.settle_down()
        assert other in process.work.working


@pytest.mark.row("F34")
async def test_one_suspect_runs_at_a_time(autojump_clock: MockClock, store: FakeStore) -> None:
    async with scheduling(store, concurrency=8) as process:
        suspects = [*process.add("a", crashes=2), *process.add("b", crashes=2)]
        others = process.add("c", 3)
        await process.settle_down()
        assert set(process.work.working) == {suspects[0], *others}
        process.work.finish(suspects[0])
        await process.settle_down()
        assert set(process.work.working) == {suspects[1], *others}


async def test_destinations_that_fail_leave_slots_to_new_ones(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store, kind=Kind.CALLBACK, concurrency=8) as process:
        for number in range(100):
            process.add(f"silent {number}", proven=False, failing=True)
        await process.settle_down()
        assert len(process.work.working) == 2
        began = trio.current_time()
        new = [process.add(f"new {number}", proven=False)[0] for number in range(3)]
        await process.settle_down()
        assert set(new[:2]) <= process.work.working.keys()
        assert new[2] not in process.work.working, "half of the slots are for those that answer"
        process.work.finish(next(job_id for job_id in process.work.begun if job_id not in new))
        await process.settle_down()
        assert trio.current_time() == began
        assert len(process.work.working) == 4


async def test_destinations_that_have_not_answered_share_half_of_the_slots(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store, kind=Kind.CALLBACK, concurrency=8) as process:
        for number in range(300):
            process.add(f"silent {number}", proven=False)
        await process.settle_down()
        assert len(process.work.working) == 4
        calls = store.calls["lease"]
        await trio.sleep(1)
        assert store.calls["lease"] == calls, "it sleeps, although some could run elsewhere"
        began = trio.current_time()
        [innocent] = process.add("answers")
        await process.settle_down()
        assert innocent in process.work.working
        assert trio.current_time() == began
        # One that ends makes room for the next at once.
        silent = next(job_id for job_id in process.work.begun if job_id != innocent)
        process.work.finish(silent)
        await process.settle_down()
        assert trio.current_time() == began
        assert len(process.work.working) == 5


class Refusing(Jobs):
    """Callbacks that are handed back for `DELAY_S` until the backend works."""

    works = False

    async def attempt(self, lease: Lease, _: StillOurs) -> Settlement:
        self.begun.append(lease.id)
        if self.works:
            return Settlement(lease=lease, verdict=Verdict.SUCCEEDED)
        return Settlement(lease=lease, verdict=Verdict.RELEASE, delay_s=DELAY_S)


@pytest.mark.parametrize("backlog", [10, 500])
async def test_a_backend_that_takes_no_callbacks_costs_the_same_however_many_wait(
    autojump_clock: MockClock, store: FakeStore, backlog: int
) -> None:
    async def pause() -> None:
        await trio.sleep(1)

    process = Process(store, work := Refusing(Kind.CALLBACK, 4))
    store.before["release"] = pause
    async with trio.open_nursery() as nursery:
        await nursery.start(process.run)
        process.add("broken a", backlog // 2)
        process.add("broken b", backlog // 2)
        process.add("other c", 1)
        await trio.sleep(10 * DELAY_S)
        assert work.begun
        assert len(work.begun) <= 12 * 4
        assert store.calls["lease"] < 2 * 10 * DELAY_S / SHARE_LOOK_S
        # The next result ends the rest of both destinations of the backend.
        work.works = True
        await trio.sleep(2 * DELAY_S)
        assert not store.pending["broken a"]
        assert not store.pending["broken b"]
        nursery.cancel_scope.cancel()
