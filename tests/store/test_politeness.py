"""What an aggregation does that must not start now: it waits, costs nothing, and goes on in time."""

from __future__ import annotations

import dataclasses

import pytest

from downloader.model import Cooldown, ErrorCode, Kind, Lease, Outcome, Verdict
from downloader.store import RetryAnswer, Submission
from downloader.store.redis_store import RedisStore
from servers.jobs import spec_for
from servers.store_clock import StoreClock

THROTTLED = Outcome(
    verdict=Verdict.THROTTLED,
    error="Received Status code 429 Too Many Requests",
    error_code=ErrorCode.HTTP_STATUS,
    response_code=429,
)


@pytest.fixture
async def clock(store: RedisStore) -> StoreClock:
    """The server's clock, which moves only when the test says so."""
    clock = StoreClock(store._client)
    await clock.start()
    return clock


async def submit(store: RedisStore, aggr_id: str, count: int, **fields: object) -> None:
    specs = [spec_for(store, aggr_id, **fields) for _ in range(count)]
    await store.submit([Submission(spec=spec) for spec in specs])


async def take(store: RedisStore, count: int = 9, owner: str = "me") -> list[Lease]:
    return list((await store.lease(Kind.DOWNLOAD, owner, count, 600)).leases)


async def next_due_s(store: RedisStore) -> float | None:
    return (await store.lease(Kind.DOWNLOAD, "other", 1, 600)).next_due_s


async def throttle(store: RedisStore, lease: Lease, seconds: float, *, asked: bool = True) -> None:
    end = dataclasses.replace(THROTTLED, cooldown=Cooldown(seconds=seconds, asked=asked))
    await store.retry_later(Kind.DOWNLOAD, "me", [(lease, end, 0.0)])


async def test_a_cooldown_holds_the_aggregation_and_no_other(store: RedisStore, clock: StoreClock) -> None:
    await submit(store, "a", 9, aggr_limit=2)
    first, second = await take(store)
    await throttle(store, first, 3)
    assert await next_due_s(store) == 3
    await submit(store, "a", 1, aggr_limit=2)  # nor does anything new begin it
    await store.release(Kind.DOWNLOAD, "me", [(second, "", 0)])
    await clock.move(2.999)
    await submit(store, "b", 1)
    assert [lease.group for lease in await take(store)] == ["b"]
    [load] = [load for load in (await store.load(9)).aggregations if load.aggr_id == "a"]
    assert load.cooling_until_ms == clock.now_ms + 1
    await clock.move(0.001)
    assert [lease.group for lease in await take(store)] == ["a", "a"], "its whole limit"
    assert all(load.cooling_until_ms is None for load in (await store.load(9)).aggregations)


async def test_a_cooldown_uses_up_no_attempt_and_is_counted(store: RedisStore, clock: StoreClock) -> None:
    await submit(store, "a", 1)
    for times in range(3):
        [lease] = await take(store)
        assert (lease.attempts, lease.throttled) == (0, times)
        await throttle(store, lease, 1)
        await clock.move(1)
    [lease] = await take(store)
    counted = dataclasses.replace(THROTTLED, verdict=Verdict.RETRY, cooldown=Cooldown(seconds=1, asked=True))
    await store.retry_later(Kind.DOWNLOAD, "me", [(lease, counted, 0.0)])
    view = await store.get(lease.id)
    assert view is not None
    assert view.outcome is not None
    assert (view.download.attempts, view.outcome.response_code) == (1, 429)
    assert await take(store) == []


async def test_a_job_that_fails_by_it_cools_its_aggregation_down_too(
    store: RedisStore, clock: StoreClock
) -> None:
    await submit(store, "a", 2)
    [lease] = await take(store)
    failed = dataclasses.replace(THROTTLED, verdict=Verdict.FAILED, cooldown=Cooldown(seconds=5, asked=True))
    await store.finish("me", [(lease, failed, None, 60)])
    assert await next_due_s(store) == 5
    assert await store.retry(lease.id, download=True, limit=1) is RetryAnswer.DONE
    await clock.move(5)
    for _ in range(2):
        [lease] = await take(store)
        assert lease.throttled == 0, "a job that is run again from the start has all of its free attempts"
        await store.finish("me", [(lease, failed, None, 60)])
        await clock.move(5)


async def test_cooldowns_that_follow_each_other_double_up_to_an_hour(
    store: RedisStore, clock: StoreClock
) -> None:
    await submit(store, "a", 1)
    for seconds in (30, 60, 120, 240, 480, 960, 1920, 3600, 3600):
        [lease] = await take(store)
        await throttle(store, lease, 30, asked=False)
        assert await next_due_s(store) == seconds
        await clock.move(seconds)
    await clock.move(3599)
    [lease] = await take(store)
    await throttle(store, lease, 30, asked=False)
    assert await next_due_s(store) == 3600
    await clock.move(2 * 3600)
    [lease] = await take(store)
    await throttle(store, lease, 30, asked=False)
    assert await next_due_s(store) == 30, "it was quiet for as long as the cooldown took"


async def test_answers_to_downloads_in_flight_are_one_cooldown(store: RedisStore, clock: StoreClock) -> None:
    await submit(store, "a", 4, aggr_limit=4)
    first, second, third, fourth = await take(store)
    await throttle(store, first, 30, asked=False)
    await clock.move(1)
    await throttle(store, second, 30, asked=False)
    assert await next_due_s(store) == 30
    await throttle(store, third, 2)
    assert await next_due_s(store) == 30, "a shorter one does not end it early"
    await throttle(store, fourth, 50)
    assert await next_due_s(store) == 50
    await clock.move(50)
    await throttle(store, (await take(store))[0], 30, asked=False)
    assert await next_due_s(store) == 60, "the next one is the second"


async def test_a_cooldown_goes_with_the_last_job(store: RedisStore, clock: StoreClock) -> None:
    await submit(store, "a", 1)
    [lease] = await take(store)
    await throttle(store, lease, 60)
    await clock.move(60)
    [lease] = await take(store)
    await store.finish("me", [(lease, dataclasses.replace(THROTTLED, verdict=Verdict.FAILED), None, 60)])
    assert await store._client.command("EXISTS", store._keys.key(0, "group", Kind.DOWNLOAD, "a")) == 0
