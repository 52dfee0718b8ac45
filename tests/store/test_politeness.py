"""Aggregations that may not start a download now: they wait, cost nothing, and start in time."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from typing import cast

import pytest

from downloader.model import Cooldown, ErrorCode, Kind, Lease, Outcome, Verdict
from downloader.store import Changed, JobStore, Settled, Submission
from downloader.wire import AggregationChanges, moment
from servers.jobs import downloaded, handed_back, spec_for, tried_again
from servers.raw_store import RawStore
from servers.store_clock import StoreClock

pytestmark = pytest.mark.usefixtures("clock")

THROTTLED = Outcome(
    verdict=Verdict.THROTTLED,
    error="Received Status code 429 Too Many Requests",
    error_code=ErrorCode.HTTP_STATUS,
    response_code=429,
)

DONE = Outcome(verdict=Verdict.SUCCEEDED)


async def submit(store: JobStore, aggr_id: str, count: int, **fields: object) -> None:
    specs = [spec_for(store, aggr_id, **fields) for _ in range(count)]
    await store.submit([Submission(spec=spec) for spec in specs])


async def take(store: JobStore, count: int = 9, owner: str = "me") -> list[Lease]:
    return list((await store.lease(Kind.DOWNLOAD, owner, count, 600)).leases)


async def next_due_s(store: JobStore) -> float | None:
    return (await store.lease(Kind.DOWNLOAD, "other", 1, 600)).next_due_s


async def throttle(store: JobStore, lease: Lease, seconds: float, *, asked: bool = True) -> None:
    end = dataclasses.replace(THROTTLED, cooldown=Cooldown(seconds=seconds, asked=asked))
    await store.settle("me", [tried_again(lease, end, 0.0)])


async def test_a_cooldown_holds_the_aggregation_and_no_other(store: JobStore, clock: StoreClock) -> None:
    await submit(store, "a", 9, aggr_limit=2)
    first, second = await take(store)
    await throttle(store, first, 3)
    assert await next_due_s(store) == 3
    await submit(store, "a", 1, aggr_limit=2)  # nor does anything new begin it
    await store.settle("me", [handed_back(second, "", 0)])
    clock.move(2.999)
    await submit(store, "b", 1)
    assert [lease.queue for lease in await take(store)] == ["b"]
    [load] = [load for load in (await store.load(9)).aggregations if load.aggr_id == "a"]
    assert load.cooling_until == moment(clock.now_ms + 1)
    clock.move(0.001)
    assert [lease.queue for lease in await take(store)] == ["a", "a"], "its whole limit"
    assert all(load.cooling_until is None for load in (await store.load(9)).aggregations)


async def test_a_cooldown_uses_up_no_attempt_and_is_counted(store: JobStore, clock: StoreClock) -> None:
    await submit(store, "a", 1)
    for times in range(3):
        [lease] = await take(store)
        assert (lease.attempts, lease.throttled) == (0, times)
        await throttle(store, lease, 1)
        clock.move(1)
    [lease] = await take(store)
    counted = dataclasses.replace(THROTTLED, verdict=Verdict.RETRY, cooldown=Cooldown(seconds=1, asked=True))
    await store.settle("me", [tried_again(lease, counted, 0.0)])
    view = await store.get(lease.id)
    assert view is not None
    assert view.outcome is not None
    assert (view.download.attempts, view.outcome.response_code) == (1, 429)
    assert await take(store) == []


async def test_a_job_that_fails_by_it_cools_its_aggregation_down_too(
    store: JobStore, clock: StoreClock
) -> None:
    await submit(store, "a", 2)
    [lease] = await take(store)
    failed = dataclasses.replace(THROTTLED, verdict=Verdict.FAILED, cooldown=Cooldown(seconds=5, asked=True))
    await store.settle("me", [downloaded(lease, failed, None, 60)])
    assert await next_due_s(store) == 5
    assert await store.retry(lease.id, download=True, limit=1) is Changed.DONE
    clock.move(5)
    for _ in range(2):
        [lease] = await take(store)
        assert lease.throttled == 0, "a job that is run again from the start has all of its free attempts"
        await store.settle("me", [downloaded(lease, failed, None, 60)])
        clock.move(5)


async def test_cooldowns_that_follow_each_other_double_up_to_an_hour(
    store: JobStore, clock: StoreClock
) -> None:
    await submit(store, "a", 1)
    for seconds in (30, 60, 120, 240, 480, 960, 1920, 3600, 3600):
        [lease] = await take(store)
        await throttle(store, lease, 30, asked=False)
        assert await next_due_s(store) == seconds
        clock.move(seconds)
    clock.move(3599)
    [lease] = await take(store)
    await throttle(store, lease, 30, asked=False)
    assert await next_due_s(store) == 3600
    clock.move(2 * 3600)
    [lease] = await take(store)
    await throttle(store, lease, 30, asked=False)
    assert await next_due_s(store) == 30, "it was quiet for as long as the cooldown took"


async def test_answers_to_downloads_in_flight_are_one_cooldown(store: JobStore, clock: StoreClock) -> None:
    await submit(store, "a", 4, aggr_limit=4)
    first, second, third, fourth = await take(store)
    await throttle(store, first, 30, asked=False)
    clock.move(1)
    await throttle(store, second, 30, asked=False)
    assert await next_due_s(store) == 30
    await throttle(store, third, 2)
    assert await next_due_s(store) == 30, "a shorter one does not end it early"
    await throttle(store, fourth, 50)
    assert await next_due_s(store) == 50
    clock.move(50)
    await throttle(store, (await take(store))[0], 30, asked=False)
    assert await next_due_s(store) == 60, "the next one is the second"


async def starts(store: JobStore, clock: StoreClock, seconds: float, late: Callable[[], float]) -> list[int]:
    """When tasks are given away, if the two instances ask when they are told to, and later by `late()`."""
    found: list[int] = []
    end = clock.now_ms + seconds * 1000
    for owner in itertools.cycle(("me", "other")):
        batch = await store.lease(Kind.DOWNLOAD, owner, 99, 600)
        found += [clock.now_ms] * len(batch.leases)
        await store.settle(owner, [downloaded(lease, DONE, None, 60) for lease in batch.leases])
        clock.move((batch.next_due_s or 0) + late())
        if clock.now_ms >= end:
            return found
    raise AssertionError


@pytest.mark.parametrize("rate", [0.5, 20, 30, 400])
async def test_instances_share_a_rate(store: JobStore, clock: StoreClock, rate: float) -> None:
    seconds = 10 / rate if rate < 1 else 5
    await submit(store, "a", round(rate * seconds) + 50, aggr_limit=999, aggr_rate=rate)
    rng = random.Random(1)
    found = await starts(store, clock, seconds, lambda: rng.choice((0, 0.001, 0.02, 0.3)))
    assert 0.95 * rate * seconds <= len(found) <= rate * seconds + 1
    begun = found[0]
    for count, at in enumerate(found):
        assert count <= rate * (at - begun) / 1000, "never ahead of it, so not all at once either"


async def test_idle_time_earns_no_extra_starts(store: JobStore, clock: StoreClock) -> None:
    await submit(store, "a", 1, aggr_limit=9, aggr_rate=10)
    [first] = await take(store)
    clock.move(0.9)
    await submit(store, "a", 5, aggr_limit=9)
    assert len(await take(store)) == 1, "and not the nine that were possible meanwhile"
    assert await next_due_s(store) == 0.1
    clock.move(1.101)
    assert len(await take(store)) == 1, "nor what was missed more than a second ago"
    await store.settle("me", [downloaded(first, DONE, None, 60)])


async def test_a_delay_is_a_least_time(store: JobStore, clock: StoreClock) -> None:
    await submit(store, "a", 9, aggr_limit=9, aggr_delay=0.4, aggr_rate=100)
    found = await starts(store, clock, 5, lambda: 0.05)
    assert len(found) == 9
    assert {after - before for before, after in itertools.pairwise(found)} == {450}


async def test_jobs_past_their_deadline_use_up_no_start(store: JobStore, clock: StoreClock) -> None:
    await submit(store, "a", 3, aggr_limit=9, aggr_rate=0.1, deadline=clock.now_ms + 5000)
    assert len(await take(store)) == 1
    clock.move(1)
    await submit(store, "a", 3, aggr_limit=9, deadline=clock.now_ms + 60_000)
    clock.move(9)
    assert len(await take(store)) == 3, "the overdue ones, which send no request, and the next one"
    assert await next_due_s(store) == 10


async def test_a_changed_rate_counts_at_once(store: JobStore, clock: StoreClock) -> None:
    await submit(store, "a", 9, aggr_limit=9, aggr_rate=0.001)
    assert len(await take(store)) == 1
    assert await next_due_s(store) == 1000
    await store.adjust("a", {"rate": 0.5})
    assert await next_due_s(store) == 2
    await store.adjust("a", {"rate": None, "delay": 30})
    assert await next_due_s(store) == 1000
    await submit(store, "a", 1, aggr_limit=9, aggr_rate=1e-9)
    assert await next_due_s(store) == 86400, "one a day at the least"
    await submit(store, "a", 1, aggr_limit=9, aggr_rate=1e6)
    assert await next_due_s(store) == 30
    await store.adjust("a", {"delay": 0})
    clock.move(0.001)
    assert len(await take(store)) == 8


async def test_a_job_that_is_run_again_brings_its_rate(
    raw: RawStore, store: JobStore, clock: StoreClock
) -> None:
    await submit(store, "a", 1, aggr_rate=0.5, aggr_delay=1)
    [lease] = await take(store)
    failed = dataclasses.replace(THROTTLED, verdict=Verdict.FAILED)
    await store.settle("me", [downloaded(lease, failed, None, 60)])
    assert await store.aggregation("a") is None
    await store.retry(lease.id, download=True, limit=1)
    assert await ttl_ms(raw, store) == -1
    found = await store.aggregation("a")
    assert found is not None
    assert (found.rate, found.delay) == (0.5, 1)


async def test_a_job_that_is_run_again_leaves_what_an_operator_has_set(store: JobStore) -> None:
    await submit(store, "a", 1, aggr_limit=3, aggr_rate=0.5, aggr_delay=1)
    [lease] = await take(store)
    failed = Outcome(verdict=Verdict.FAILED, error="no")
    await store.settle("me", [downloaded(lease, failed, None, 60)])
    await store.adjust("a", {"limit": 2, "rate": 0.1})
    await store.retry(lease.id, download=True, limit=1)
    for changes, values in (({}, (2, 0.1, 1)), ({"limit": None, "rate": None}, (3, 0.5, 1))):
        found = await store.adjust("a", cast("AggregationChanges", changes))
        assert found is not None
        assert (found.limit, found.rate, found.delay) == values


async def test_an_older_instance_cannot_start_it_early(
    raw: RawStore, store: JobStore, clock: StoreClock
) -> None:
    """Its scripts put a group into `ready` without regard to these fields."""
    await submit(store, "a", 2, aggr_limit=9, aggr_rate=0.1)
    assert len(await take(store)) == 1
    raw.command("ZADD", raw.key("ready", Kind.DOWNLOAD), 1, "a")
    assert await take(store) == []
    assert await next_due_s(store) == 10


async def ttl_ms(raw: RawStore, store: JobStore) -> int:
    """Of the aggregation's record: -1 if it stays, -2 if there is none."""
    return int(raw.command("PTTL", raw.key("queue_record", Kind.DOWNLOAD, "a")))


async def test_a_cooldown_outlasts_the_last_job(raw: RawStore, store: JobStore, clock: StoreClock) -> None:
    await submit(store, "a", 1, aggr_delay=1)
    [lease] = await take(store)
    failed = dataclasses.replace(THROTTLED, verdict=Verdict.FAILED, cooldown=Cooldown(seconds=60, asked=True))
    await store.settle("me", [downloaded(lease, failed, None, 60)])
    assert await store.aggregation("a") is None
    assert 0 < await ttl_ms(raw, store) <= 60_000
    await submit(store, "a", 1, aggr_limit=3)
    assert await ttl_ms(raw, store) == -1
    assert await take(store) == []
    assert await next_due_s(store) == 60
    found = await store.aggregation("a")
    assert found is not None
    # What the first job asked for went with it.
    assert (found.limit, found.delay, found.overridden) == (3, None, {})
    clock.move(60)
    [lease] = await take(store)
    await store.settle("me", [downloaded(lease, DONE, None, 60)])
    assert await ttl_ms(raw, store) == -2, "nothing has to wait any more"


async def test_what_an_operator_has_set_keeps_nothing_that_jobs_asked_for(
    store: JobStore, clock: StoreClock
) -> None:
    await submit(store, "a", 1, aggr_delay=1)
    await store.adjust("a", {"limit": 5})
    [lease] = await take(store)
    await store.settle("me", [downloaded(lease, DONE, None, 60)])
    await submit(store, "a", 1)
    found = await store.aggregation("a")
    assert found is not None
    assert (found.limit, found.delay) == (5, None)


async def test_jobs_that_come_one_by_one_keep_the_delay(store: JobStore, clock: StoreClock) -> None:
    taken = []
    for _ in range(4):
        await submit(store, "a", 1, aggr_delay=2)
        leases = await take(store)
        taken.append(len(leases))
        await store.settle("me", [downloaded(lease, DONE, None, 60) for lease in leases])
        clock.move(1)
    assert taken == [1, 0, 1, 0]


# the server's clock is set back


@pytest.mark.row("F36")
async def test_a_rate_goes_on_when_the_clock_is_set_back(store: JobStore, clock: StoreClock) -> None:
    """Not after the hour that it was set back."""
    clock.move(10 * 3600)
    await submit(store, "a", 2, aggr_limit=4, aggr_rate=1.0)
    assert len(await take(store)) == 1
    clock.move(-3600)
    await submit(store, "a", 3, aggr_limit=4, aggr_rate=1.0)
    assert len(await take(store)) == 1
    clock.move(0.999)
    assert await take(store) == []
    clock.move(0.001)
    assert len(await take(store)) == 1


@pytest.mark.row("F36")
async def test_a_cooldown_of_hours_does_not_count(store: JobStore, clock: StoreClock) -> None:
    clock.move(10 * 3600)
    await submit(store, "a", 2, aggr_limit=1)
    [lease] = await take(store)
    await throttle(store, lease, 3600)
    clock.move(-7 * 3600)
    await submit(store, "a", 1, aggr_limit=1)
    assert len(await take(store)) == 1


@pytest.mark.row("F30", "F36")
async def test_a_generation_does_not_come_twice_when_the_clock_is_set_back(
    store: JobStore, clock: StoreClock
) -> None:
    clock.move(10 * 3600)
    await submit(store, "a", 1)
    generations = []
    for _ in range(3):
        [lease] = await take(store)
        generations.append(int(lease.generation))
        clock.move(-3600)
        await store.settle("me", [handed_back(lease, "", 0)])
    first = generations[0]
    assert generations == [first, first + 1, first + 2]


@pytest.mark.row("F36")
async def test_a_dead_holder_s_lease_ends_although_the_clock_is_set_back(
    store: JobStore, clock: StoreClock
) -> None:
    clock.move(10 * 3600)
    await submit(store, "a", 2, aggr_limit=2)
    [dead, alive] = (await store.lease(Kind.DOWNLOAD, "me", 2, 30)).leases
    clock.move(-3600)
    assert await store.renew(Kind.DOWNLOAD, "me", [alive], 30) == [Settled.DONE]
    assert await store.sweep(Kind.DOWNLOAD, lease_s=30) == [dead.id]
    clock.move(29)
    assert await store.sweep(Kind.DOWNLOAD, lease_s=30) == []
