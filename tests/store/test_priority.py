"""Which of an aggregation's jobs is next, by priority, over all instances and versions."""

from __future__ import annotations

import pytest

from downloader.model import ErrorCode, Kind, Outcome, Verdict
from downloader.store import CallbackPlan, Changed, JobStore, Submission
from servers.jobs import downloaded, handed_back, spec_for, tried_again
from servers.raw_store import RawStore
from servers.store_clock import StoreClock

pytestmark = pytest.mark.usefixtures("clock")

RETRY = Outcome(verdict=Verdict.RETRY, error="e", error_code=ErrorCode.TIMEOUT)
FAILED = Outcome(verdict=Verdict.FAILED, error="e", error_code=ErrorCode.TIMEOUT)
PLAN = CallbackPlan(queue="http c", limit=4)


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


async def members(raw: RawStore, store: JobStore, name: str, *parameters: str) -> list[str]:
    found: list[str] = raw.command("ZRANGE", raw.key(name, *parameters), 0, -1)
    return found


async def test_the_highest_begin_first_and_equal_ones_as_they_came(
    raw: RawStore, store: JobStore, clock: StoreClock
) -> None:
    first = await submit(store, 0, 5, 9)
    clock.move(1)
    second = await submit(store, 9, 0, 1)
    expected = [first[2], second[0], first[1], second[2], first[0], second[1]]
    assert await order(store) == expected
    assert await members(raw, store, "urgent", "a") == []


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
    clock.move(60)
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
    clock.move(10)
    await store.sweep(Kind.DOWNLOAD)
    assert await order(store, 1) == [high]


async def test_a_cancelled_one_is_forgotten(raw: RawStore, store: JobStore) -> None:
    [high, low] = await submit(store, 9, 0)
    view = await store.get(high)
    assert view is not None
    assert await store.cancel(view.spec, PLAN, 60) is Changed.DONE
    assert await members(raw, store, "urgent", "a") == []
    assert await order(store) == [low]


async def test_versions_without_priorities_share_the_store(
    raw: RawStore, store: JobStore, clock: StoreClock
) -> None:
    """Such a version leases from the queue, and makes pending again there, without a look at `urgent`."""
    queue = raw.key("pending", "download", "a")
    taken, moved, high, low = await submit(store, 9, 8, 7, 0)
    assert set(await members(raw, store, "pending", "download", "a")) == {taken, moved, high, low}
    raw.command("ZREM", queue, taken)
    raw.command("ZADD", queue, clock.now_ms + 5000, moved)
    assert await order(store, 1) == [high]
    clock.move(5)
    assert await order(store) == [moved, low]
    assert await members(raw, store, "urgent", "a") == []


async def test_its_leftovers_go_with_the_aggregation(raw: RawStore, store: JobStore) -> None:
    taken, _ = await submit(store, 9, 0)
    raw.command("ZREM", raw.key("pending", "download", "a"), taken)
    store_key = raw.key("urgent", "a")
    raw.command("ZADD", store_key, 1, "NSb4FOAs9fVaQw")
    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 9, 600)).leases
    raw.command("ZADD", store_key, 1, "NSb4FOAs9fVaQw")
    await store.settle("me", [downloaded(lease, FAILED, None, 60)])
    assert raw.command("EXISTS", store_key) == 0


async def test_a_job_without_priority_costs_nothing(raw: RawStore, store: JobStore) -> None:
    [job_id] = await submit(store, 0)
    assert raw.command("EXISTS", raw.key("urgent", "a")) == 0
    assert raw.command("EXISTS", raw.key("task", "download", job_id)) == 0
    assert "priority" not in str(raw.command("GET", raw.key("job", job_id)))
