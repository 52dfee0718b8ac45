"""Which of an aggregation's jobs is next, by priority, over all instances and versions."""

from __future__ import annotations

import pytest

from downloader.model import ErrorCode, Kind, Outcome, Verdict
from downloader.store import CallbackPlan, Changed, JobStore, Submission
from servers.jobs import downloaded, handed_back, spec_for, tried_again
from servers.store_clock import StoreClock

RETRY = Outcome(verdict=Verdict.RETRY, error="e", error_code=ErrorCode.TIMEOUT)
FAILED = Outcome(verdict=Verdict.FAILED, error="e", error_code=ErrorCode.TIMEOUT)
PLAN = CallbackPlan(group="http c", limit=4)


@pytest.fixture
async def clock(store: JobStore) -> StoreClock:
    """The server's clock, which only the test moves."""
    clock = StoreClock(store._client)
    await clock.start()
    return clock


async def submit(store: JobStore, *priorities: int, aggr_id: str = "a", **fields: object) -> list[str]:
    specs = [
        spec_for(store, aggr_id, **{"aggr_limit": 99, "priority": priority} | fields)
        for priority in priorities
    ]
    await store.submit([Submission(spec=spec) for spec in specs])
    return [spec.id for spec in specs]


async def order(store: JobStore, count: int = 99) -> list[str]:
    """Jobs in the order in which they begin, whichever instance asks."""
    return [
        lease.id
        for number in range(count)
        for lease in (await store.lease(Kind.DOWNLOAD, f"instance {number % 3}", 1, 600)).leases
    ]


async def members(store: JobStore, name: str, *parameters: str) -> list[str]:
    found: list[str] = await store._client.command("ZRANGE", store._keys.key(0, name, *parameters), 0, -1)
    return found


async def test_the_highest_begin_first_and_equal_ones_as_they_came(
    store: JobStore, clock: StoreClock
) -> None:
    first = await submit(store, 0, 5, 9)
    await clock.move(1)
    second = await submit(store, 9, 0, 1)
    expected = [first[2], second[0], first[1], second[2], first[0], second[1]]
    assert await order(store) == expected
    assert await members(store, "urgent", "a") == []


async def test_many_in_one_call(store: JobStore) -> None:
    low, high, middle = await submit(store, 0, 9, 4)
    batch = await store.lease(Kind.DOWNLOAD, "me", 99, 600)
    assert [lease.id for lease in batch.leases] == [high, middle, low]
    assert [lease.spec.priority for lease in batch.leases] == [9, 4, 0]


async def test_a_job_that_is_not_due_delays_no_other(store: JobStore, clock: StoreClock) -> None:
    later = clock.now_ms + 60_000
    [high] = await submit(store, 9, not_before=later)
    [middle] = await submit(store, 5, not_before=later)
    low, some = await submit(store, 0, 1)
    assert await order(store, 2) == [some, low]
    assert (await store.lease(Kind.DOWNLOAD, "other", 1, 600)).next_due_s == 60
    [low] = await submit(store, 0)
    await clock.move(60)
    assert await order(store, 3) == [high, middle, low]


async def test_other_aggregations_have_their_turns(store: JobStore) -> None:
    urgent = await submit(store, 9, 9, 9)
    patient = await submit(store, 0, 0, 0, aggr_id="b")
    assert [job_id in urgent for job_id in await order(store)] == [True, False] * 3
    assert len(patient) == 3


@pytest.mark.parametrize("how", ["retry_later", "release", "sweep", "retry"])
async def test_it_is_kept_whichever_way_a_job_waits_again(
    store: JobStore, clock: StoreClock, how: str
) -> None:
    [high] = await submit(store, 7)
    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 10)).leases
    await submit(store, 0, 0)
    if how == "retry_later":
        await store.settle("me", [tried_again(lease, RETRY, 5)])
    elif how == "release":
        await store.settle("me", [handed_back(lease, "", 0)])
    elif how == "retry":
        await store.settle("me", [downloaded(lease, FAILED, None, 60)])
        assert await store.retry(high, download=True, limit=4) is Changed.DONE
    await clock.move(10)
    await store.sweep(Kind.DOWNLOAD)
    assert await order(store, 1) == [high]


async def test_a_cancelled_one_is_forgotten(store: JobStore) -> None:
    [high, low] = await submit(store, 9, 0)
    view = await store.get(high)
    assert view is not None
    assert await store.cancel(view.spec, PLAN, 60) is Changed.DONE
    assert await members(store, "urgent", "a") == []
    assert await order(store) == [low]


async def test_versions_without_priorities_share_the_store(store: JobStore, clock: StoreClock) -> None:
    """Such a version leases from the queue, and makes pending again there, without a look at `urgent`."""
    queue = store._keys.key(0, "queue", "download", "a")
    taken, moved, high, low = await submit(store, 9, 8, 7, 0)
    assert set(await members(store, "queue", "download", "a")) == {taken, moved, high, low}
    await store._client.command("ZREM", queue, taken)
    await store._client.command("ZADD", queue, clock.now_ms + 5000, moved)
    assert await order(store, 1) == [high]
    await clock.move(5)
    assert await order(store) == [moved, low]
    assert await members(store, "urgent", "a") == []


async def test_its_leftovers_go_with_the_aggregation(store: JobStore) -> None:
    taken, _ = await submit(store, 9, 0)
    await store._client.command("ZREM", store._keys.key(0, "queue", "download", "a"), taken)
    store_key = store._keys.key(0, "urgent", "a")
    await store._client.command("ZADD", store_key, 1, "NSb4FOAs9fVaQw")
    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 9, 600)).leases
    await store._client.command("ZADD", store_key, 1, "NSb4FOAs9fVaQw")
    await store.settle("me", [downloaded(lease, FAILED, None, 60)])
    assert await store._client.command("EXISTS", store_key) == 0


async def test_a_job_without_priority_costs_nothing(store: JobStore) -> None:
    [job_id] = await submit(store, 0)
    assert await store._client.command("EXISTS", store._keys.key(0, "urgent", "a")) == 0
    assert await store._client.command("EXISTS", store._keys.key(0, "task", "download", job_id)) == 0
    assert "priority" not in str(await store._client.command("GET", store._keys.key(0, "job", job_id)))
