"""How long a holder counts on a lease, and what ends the work."""

from __future__ import annotations

import time

import pytest
import trio
from trio.testing import MockClock

from downloader.ids import new_id
from downloader.model import Kind, Verdict
from downloader.scheduler.leases import (
    HUNG_S,
    MARGIN,
    MAX_MARGIN_S,
    RENEW_BATCH,
    SWEEP_BATCH,
    SWEEPS_PER_LEASE,
    boottime,
)
from downloader.scheduler.loop import LEASE_BATCH, MAX_BACKOFF_S
from servers.fake_store import FakeStore, refuse
from servers.scheduling import LEASE_S, LONGEST_S, Process, Stuck, scheduling

TRUSTED_S = LEASE_S - min(LEASE_S * MARGIN, MAX_MARGIN_S)


async def test_a_renewed_lease_is_kept(autojump_clock: MockClock, store: FakeStore) -> None:
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await trio.sleep(10 * LEASE_S)
        assert job_id in process.work.working
        assert store.renewed[job_id] >= 10


@pytest.mark.row("F33")
async def test_the_lease_of_work_that_hangs_in_a_thread_ends(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    """Else no other instance would ever get the job, nor, with a limit of 1, its whole aggregation."""
    work = Stuck(Kind.DOWNLOAD, concurrency=4)
    work.hangs_s = 3 * LONGEST_S
    process = Process(store, work)
    async with trio.open_nursery() as nursery:
        await nursery.start(process.run)
        [job_id] = process.add("a")
        await trio.sleep(LONGEST_S)
        still_ours = work.working[job_id]
        assert still_ours(), "its own time has just ended, and a margin follows"
        renewed = store.renewed[job_id]
        assert renewed > LONGEST_S / LEASE_S
        await trio.sleep(HUNG_S + LEASE_S)
        assert not still_ours()
        renewed = store.renewed[job_id]
        await trio.sleep(LONGEST_S)
        assert store.renewed[job_id] == renewed
        await trio.sleep(LONGEST_S)
        nursery.cancel_scope.cancel()


async def test_a_renewal_under_way_does_not_revive_a_lost_lease(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await process.settle_down()
        [held] = process.held
        still_ours = process.work.working[job_id]
        held.lose()
        held.prolong(process.clock(), LEASE_S)
        assert not still_ours()


@pytest.mark.row("F22")
async def test_renewals_of_many_leases_go_side_by_side(autojump_clock: MockClock, store: FakeStore) -> None:
    """One after the other, the last ones would end while a slow store answers the first."""

    async def slow() -> None:
        await trio.sleep(5)

    store.before["renew"] = slow
    count = 6 * RENEW_BATCH
    async with scheduling(store, concurrency=count) as process:
        ids = process.add("a", count, limit=count)
        await trio.sleep(3 * LEASE_S)
        assert process.work.working.keys() == set(ids)


async def test_all_leases_are_renewed_however_many(autojump_clock: MockClock, store: FakeStore) -> None:
    count = RENEW_BATCH + 1
    async with scheduling(store, concurrency=count) as process:
        ids = process.add("a", count)
        await trio.sleep(LEASE_S)
        assert process.work.working.keys() == set(ids)
        assert max(store.asked) == LEASE_BATCH


async def test_dead_instances_are_looked_for_also_after_the_store_was_silent(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    store.before["sweep"] = refuse
    async with scheduling(store):
        await trio.sleep(LEASE_S)
        assert SWEEPS_PER_LEASE <= store.calls["sweep"] <= 2 * SWEEPS_PER_LEASE


async def test_all_that_a_dead_instance_held_is_found_by_one_sweep(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    store.dead = [new_id(0, 1) for _ in range(2 * SWEEP_BATCH + 50)]
    async with scheduling(store):
        await trio.sleep(LEASE_S / SWEEPS_PER_LEASE)
        assert store.dead == []
    assert store.longest_lease_s == LEASE_S, "longer ones come from a clock that was set back"


async def test_a_holder_that_cannot_renew_stops_before_its_lease_ends(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    store.before["renew"] = refuse
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await process.settle_down()
        began = trio.current_time()
        still_ours = process.work.working[job_id]
        await trio.sleep(TRUSTED_S - 0.001)
        assert still_ours()
        await trio.sleep(0.002)
        assert not still_ours()
        assert process.work.cancelled[job_id] - began == pytest.approx(TRUSTED_S)
        assert TRUSTED_S <= LEASE_S - 1
        assert process.work.losses == 1


@pytest.mark.row("F22")
async def test_a_lease_that_ended_while_the_store_was_away_is_handed_back_when_it_answers(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    """The store then knows that its holder has not crashed, also if another instance has swept it."""
    store.before["renew"] = store.before["release"] = refuse
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await trio.sleep(10 * LEASE_S)
        assert process.work.losses == 1
        assert job_id not in process.work.working
        assert store.settled == []
        del store.before["renew"], store.before["release"]
        await trio.sleep(MAX_BACKOFF_S)
        await process.settle_down()
        assert store.settled == [("release", job_id)]
        assert process.work.ends == []


@pytest.mark.row("F22")
async def test_a_lease_that_the_store_took_away_is_not_handed_back(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    """Neither one that was renewed late, by a holder whose loop was blocked."""
    store.before["renew"] = refuse
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await trio.sleep(LEASE_S / 2)
        del store.before["renew"]
        store.lose(job_id)
        await trio.sleep(LEASE_S)
        assert process.work.losses == 1
        assert store.calls["release"] == 0


@pytest.mark.row("F22")
async def test_a_lease_that_ends_while_its_renewal_is_under_way_is_handed_back(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    store.before["renew"] = trio.sleep_forever
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await trio.sleep(LEASE_S)
        await process.settle_down()
        assert store.settled == [("release", job_id)]


async def test_a_stop_does_not_wait_for_leases_that_ended_while_the_store_was_away(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    store.before["renew"] = store.before["release"] = refuse
    async with scheduling(store) as process:
        process.add("a")
        await trio.sleep(LEASE_S + 1)
        process.stop.begin(15)
        with trio.fail_after(1):
            await process.ended.wait()


async def test_a_lease_counts_from_the_request_and_not_from_the_answer(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    """The store begins to count somewhere between the two."""

    async def late() -> None:
        await trio.sleep(4)

    store.after["lease"] = late
    store.before["renew"] = refuse
    async with scheduling(store) as process:
        await process.settle_down()
        await trio.sleep(4)  # of its first call, which found nothing
        [job_id] = process.add("a")
        began = trio.current_time()
        await trio.sleep(LEASE_S + 1)
        assert process.work.cancelled[job_id] - began == pytest.approx(TRUSTED_S)


async def test_a_renewal_counts_from_the_request_and_not_from_the_answer(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    asked: list[float] = []

    async def late() -> None:
        asked.append(trio.current_time())
        await trio.sleep(4)

    async def stop_then() -> None:
        store.before["renew"] = refuse
        del store.after["renew"]
        await late()

    store.after["renew"] = stop_then
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await trio.sleep(2 * LEASE_S)
        assert len(asked) == 1
        assert process.work.cancelled[job_id] - asked[0] == pytest.approx(TRUSTED_S)


async def test_renewals_that_failed_are_tried_again_sooner(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    store.before["renew"] = refuse
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await trio.sleep(LEASE_S / 2)
        assert store.calls["renew"] > 1
        del store.before["renew"]
        await trio.sleep(LEASE_S)
        assert job_id in process.work.working


async def test_a_lost_lease_ends_its_work_and_settles_nothing(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store) as process:
        lost, kept = process.add("a", 2)
        await process.settle_down()
        store.lose(lost)
        await trio.sleep(LEASE_S / 2)  # before the lease would have ended by itself
        assert lost in process.work.cancelled
        assert kept in process.work.working
        assert (process.work.losses, process.work.ends, store.settled) == (1, [], [])


async def test_work_that_ends_after_its_lease_was_lost_is_not_counted(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await process.settle_down()
        store.lose(job_id)
        process.work.finish(job_id)
        await process.settle_down()
        assert (process.work.losses, process.work.ends) == (1, [])


async def test_a_settlement_waits_for_a_store_that_does_not_answer(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    store.before["finish"] = refuse
    async with scheduling(store) as process:
        slow, other = process.add("a", 2)
        await process.settle_down()
        process.work.finish(slow)
        await trio.sleep(20)
        assert process.work.ends == []
        assert store.calls["finish"] > 5
        del store.before["finish"]
        process.work.finish(other)
        await trio.sleep(3)
        assert process.work.ends == [(other, Verdict.SUCCEEDED), (slow, Verdict.SUCCEEDED)]


async def test_the_end_of_a_job_is_known_although_its_answer_was_lost_for_longer_than_its_lease(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    """The store has applied the settlement. Once it answers, the job counts as ended and not as lost."""
    store.after["finish"] = store.before["renew"] = refuse
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await process.settle_down()
        process.work.finish(job_id)
        await trio.sleep(2 * LEASE_S)
        assert (store.settled, process.work.ends) == ([("finish", job_id)], [])
        store.after.clear()
        store.before.clear()
        await trio.sleep(MAX_BACKOFF_S)
        await process.settle_down()
        assert (process.work.ends, process.work.losses) == ([(job_id, Verdict.SUCCEEDED)], 0)
        assert store.settled == [("finish", job_id)]


async def test_a_result_that_the_store_has_not_taken_is_lost_and_no_crash_is_counted(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    """While the store did not answer, the lease was swept."""
    store.before["finish"] = store.before["renew"] = refuse
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await process.settle_down()
        process.work.finish(job_id)
        await trio.sleep(2 * LEASE_S)
        store.lose(job_id)
        store.before.clear()
        await trio.sleep(2 * MAX_BACKOFF_S)
        await process.settle_down()
        assert (process.work.ends, process.work.losses, store.calls["release"]) == ([], 1, 1)


async def test_each_lease_has_one_end_also_when_a_stop_comes_before_the_store_answers(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    store.before["finish"] = store.before["release"] = store.before["renew"] = refuse
    async with scheduling(store) as process:
        done, _ = process.add("a", 2)
        await process.settle_down()
        process.work.finish(done)
        await trio.sleep(2 * LEASE_S)
        process.stop.begin(1)
        await process.ended.wait()
        assert (process.work.ends, process.work.losses) == ([], 2)


@pytest.mark.row("F28")
async def test_a_suspend_counts_against_the_lease(autojump_clock: MockClock, store: FakeStore) -> None:
    """The host slept: timers did not move, and the store's clock did."""
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await process.settle_down()
        still_ours = process.work.working[job_id]
        process.skipped_s = LEASE_S
        assert not still_ours()


@pytest.mark.row("F28")
def test_the_clock_of_leases_counts_suspends(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that was never suspended the two clocks read alike: only which one is asked tells."""
    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 7, raising=False)
    monkeypatch.setattr(time, "clock_gettime", {7: 1234.5}.__getitem__)
    assert boottime() == 1234.5


def test_without_boottime_the_monotonic_clock_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    before = time.monotonic()
    assert before <= boottime() <= time.monotonic()
