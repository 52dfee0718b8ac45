"""Rates of callback destinations, which all notifiers keep together."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from downloader.config import RedisSettings
from downloader.model import CallbackOutcome, Kind, Lease, Outcome, Verdict
from downloader.store import CallbackPlan, JobStore, Library, Submission, asyncio_loop, open_store
from servers.jobs import closed, downloaded, spec_for, tried_again
from servers.raw_store import RawStore
from servers.store_clock import StoreClock

pytestmark = pytest.mark.usefixtures("clock")

SLOW, FREE = "http http://slow.test", "http http://free.test"
DELIVERED = CallbackOutcome(verdict=Verdict.SUCCEEDED)


@pytest.fixture
async def rated(redis_settings: RedisSettings, library: Library) -> AsyncIterator[JobStore]:
    async with asyncio_loop(), open_store(redis_settings, rates={SLOW: 2}, library=library) as opened:
        yield opened


async def wait_for(store: JobStore, group: str, count: int) -> None:
    """Let callbacks to a destination wait."""
    await store.submit([Submission(spec=spec_for(store, "a", aggr_limit=99)) for _ in range(count)])
    downloads = (await store.lease(Kind.DOWNLOAD, "me", count, 60)).leases
    done, plan = Outcome(verdict=Verdict.SUCCEEDED), CallbackPlan(queue=group, limit=9)
    await store.settle("me", [downloaded(lease, done, plan, 60) for lease in downloads])


async def take(store: JobStore) -> tuple[list[Lease], float | None]:
    batch = await store.lease(Kind.CALLBACK, "me", 9, 600)
    return list(batch.leases), batch.next_due_s


async def deliver(store: JobStore, *leases: Lease) -> None:
    await store.settle("me", [closed(lease, DELIVERED, 60, 9) for lease in leases])


async def test_callbacks_start_at_the_rate_and_others_at_once(rated: JobStore, clock: StoreClock) -> None:
    await wait_for(rated, SLOW, 4)
    await wait_for(rated, FREE, 4)
    leases, due_s = await take(rated)
    assert sorted(lease.queue for lease in leases) == [FREE] * 4 + [SLOW]
    assert due_s == 0.5
    clock.move(0.5)
    leases, due_s = await take(rated)
    assert ([lease.queue for lease in leases], due_s) == ([SLOW], 0.5)


async def test_callbacks_that_come_one_by_one_keep_the_rate(
    raw: RawStore, rated: JobStore, clock: StoreClock
) -> None:
    for _ in range(3):
        await wait_for(rated, SLOW, 1)
        [lease], _ = await take(rated)
        await deliver(rated, lease)
        assert raw.command("EXISTS", raw.key("queue_record", Kind.CALLBACK, SLOW)) == 0
        await wait_for(rated, SLOW, 1)
        clock.move(0.499)
        assert await take(rated) == ([], 0.001)
        clock.move(0.001)
        [lease], _ = await take(rated)
        await deliver(rated, lease)
        clock.move(0.5)


async def test_a_retry_counts_as_a_start(rated: JobStore, clock: StoreClock) -> None:
    await wait_for(rated, SLOW, 2)
    [lease], _ = await take(rated)
    failed = CallbackOutcome(verdict=Verdict.RETRY, error="500")
    await rated.settle("me", [tried_again(lease, failed, 0.1)])
    clock.move(0.4)
    assert await take(rated) == ([], 0.1)
    clock.move(0.1)
    leases, due_s = await take(rated)
    assert len(leases) == 1
    assert due_s is None, "a destination that has failed gets one at a time"


async def test_a_rate_that_was_taken_away_holds_no_longer(
    raw: RawStore, rated: JobStore, store: JobStore, clock: StoreClock
) -> None:
    await wait_for(rated, SLOW, 5)
    await take(rated)
    clock.move(0.5)
    leases, _ = await take(store)
    assert len(leases) == 4
    assert raw.command("HEXISTS", raw.key("queue_record", Kind.CALLBACK, SLOW), "rate") == 0


async def test_a_rate_that_was_lowered_counts_at_once(
    redis_settings: RedisSettings, library: Library, rated: JobStore, clock: StoreClock
) -> None:
    await wait_for(rated, SLOW, 3)
    await take(rated)
    async with open_store(redis_settings, rates={SLOW: 0.1}, library=library) as store:
        clock.move(1)
        assert await take(store) == ([], 9)
        clock.move(9)
        assert len((await take(store))[0]) == 1


async def test_a_notifier_of_an_older_version_obeys_the_rate_in_the_record(
    raw: RawStore, rated: JobStore, clock: StoreClock
) -> None:
    """Its scripts read the same fields for a callback as for a download."""
    await wait_for(rated, SLOW, 3)
    await take(rated)
    assert raw.command("HGET", raw.key("queue_record", Kind.CALLBACK, SLOW), "rate") == "2.0"
    assert raw.command("ZSCORE", raw.key("timers", Kind.CALLBACK), SLOW) == clock.now_ms + 500
