"""A client cancels a job while the download runs in this process."""

from __future__ import annotations

import math

import trio
from trio.testing import MockClock

from downloader.model import Verdict
from downloader.scheduler import revoke
from downloader.scheduler.loop import DISCARD_S
from servers.fake_store import FakeStore
from servers.scheduling import LEASE_S, Process, scheduling


def handed_back(process: Process, job_id: str) -> bool:
    """Its end was reported, to free the slot, and is not counted."""
    work = process.work
    return (
        process.store.calls["release"] == 1
        and work.discarded == [job_id]
        and (work.ends, work.losses) == ([], 0)
        and not process.held
    )


async def test_its_holder_stops_at_once_when_it_is_told(autojump_clock: MockClock, store: FakeStore) -> None:
    async with scheduling(store) as process:
        job_id, other = process.add("a", 2)
        await process.settle_down()
        still_ours = process.work.working[job_id]
        store.cancel(job_id)
        revoke(process.held, job_id)
        assert not still_ours(), "nothing is published from now on"
        await process.settle_down()
        assert list(process.work.working) == [other]
        process.work.finish(other)
        await process.settle_down()
        assert process.work.ends == [(other, Verdict.SUCCEEDED)]
        assert process.work.discarded == [job_id]


async def test_its_holder_stops_at_the_next_renewal_if_it_is_not_told(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await process.settle_down()
        store.cancel(job_id)
        await trio.sleep(LEASE_S / 2)
        assert handed_back(process, job_id)


async def test_a_renewal_that_is_answered_late_gives_nothing_back(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    """The store has renewed the lease before the cancel; the answer comes after the news of it."""

    async def cancel_meanwhile() -> None:
        store.cancel(job_id)
        revoke(process.held, job_id)

    store.after["renew"] = cancel_meanwhile
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await process.settle_down()
        still_ours = process.work.working[job_id]
        await trio.sleep(LEASE_S / 2)
        assert not still_ours()
        assert handed_back(process, job_id)


async def test_a_file_stored_during_the_cancel_is_deleted(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store) as process:
        [job_id] = process.add("a")
        await process.settle_down()
        store.cancel(job_id)
        process.work.finish(job_id)
        await process.settle_down()
        assert process.work.discarded == [job_id]
        assert process.work.ends == []


async def test_a_storage_that_hangs_does_not_keep_its_lease(
    autojump_clock: MockClock, store: FakeStore
) -> None:
    async with scheduling(store) as process:
        process.work.discard_s = math.inf
        [job_id] = process.add("a")
        await process.settle_down()
        store.cancel(job_id)
        revoke(process.held, job_id)
        await trio.sleep(DISCARD_S + 0.1)
        assert not process.held
