"""What the store answers to callers that ask again, come late or died. Faults F4 and F15, no processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import trio

from downloader.config import RedisSettings
from downloader.model import ErrorCode, Kind, Outcome, Verdict
from downloader.store import JobStore, LeaseRequests, Settled, Submission, asyncio_loop, open_store
from downloader.store.codec import fields
from servers.jobs import downloaded, spec_for, submitted
from servers.raw_store import RawStore


def records(answer: Sequence[Any]) -> list[dict[str, Any]]:
    """The leases in an answer of the script."""
    return [fields(lease) for lease in fields(answer)["leases"]]


@pytest.mark.row("F4")
async def test_f4_a_lease_that_was_asked_for_again_holds_from_then_on(raw: RawStore, store: JobStore) -> None:
    """The holder counts from its last question; the store must not count from the first."""
    spec = spec_for(store)
    await store.submit([Submission(spec=spec)])
    ask = {"kind": "download", "owner": "me", "request": "request-1", "count": 1, "lease_ms": 60_000}
    ask |= {"last": [], "never": [], "unproven": 0}
    raw.run("lease", ask)
    leases = raw.key("leases", Kind.DOWNLOAD)
    raw.command("ZINCRBY", leases, -59_000, spec.id)  # asked 59 s ago
    memo = raw.key("memo", Kind.DOWNLOAD, "me")
    raw.command("PEXPIRE", memo, 1000)
    raw.run("lease", ask)
    assert raw.command("PTTL", memo) > 55_000, "the answer may be lost again"
    ends_ms = float(raw.command("ZSCORE", leases, spec.id))
    now_s, _ = raw.command("TIME")
    assert ends_ms / 1000 - int(now_s) > 55


async def test_tasks_that_lease_at_the_same_time_get_different_leases(store: JobStore) -> None:
    specs = [await submitted(store, aggr_limit=2) for _ in range(2)]
    leased: list[str] = []

    async def lease() -> None:
        batch = await store.lease(Kind.DOWNLOAD, "me", 1, 10)
        leased.extend(lease.id for lease in batch.leases)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease)
        nursery.start_soon(lease)
    assert sorted(leased) == sorted(spec.id for spec in specs)


@pytest.mark.row("F4")
async def test_f4_a_stopping_holder_gets_only_the_leases_of_a_lost_answer(
    raw: RawStore, store: JobStore
) -> None:
    lost, waiting = [await submitted(store, name) for name in "ab"]
    requests = LeaseRequests()
    ask = {"kind": "download", "owner": "me", "request": requests.id_for(0), "count": 1, "lease_ms": 60_000}
    [row] = records(raw.run("lease", ask | {"last": [], "never": [], "unproven": 0}))
    assert row["id"] == lost.id
    batch = await store.lease(Kind.DOWNLOAD, "me", 0, 60, requests=requests)
    assert [lease.id for lease in batch.leases] == [lost.id]
    assert not (await store.lease(Kind.DOWNLOAD, "me", 0, 60, requests=requests)).leases
    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 9, 60, requests=requests)).leases
    assert lease.id == waiting.id


@pytest.mark.row("F4")
async def test_f4_an_ended_lease_is_not_given_again(raw: RawStore, store: JobStore) -> None:
    await store.submit([Submission(spec=spec_for(store))])
    ask = {"kind": "download", "owner": "me", "request": "request-1", "count": 1, "lease_ms": 60_000}
    ask |= {"last": [], "never": [], "unproven": 0}
    [lease] = records(raw.run("lease", ask))
    raw.command("ZADD", raw.key("leases", Kind.DOWNLOAD), 1, lease["id"])
    await store.sweep(Kind.DOWNLOAD)
    assert records(raw.run("lease", ask)) == []


@pytest.mark.row("F4")
async def test_f4_a_holder_that_settles_again_is_answered_done(store: JobStore) -> None:
    """A renewal on its way while a completion is: its holder must hear of success, not of a lost lease."""
    done = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
    await store.submit([Submission(spec=spec_for(store))])
    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 10)).leases
    await store.settle("me", [downloaded(lease, done, None, 60.0)])
    assert await store.renew(Kind.DOWNLOAD, "me", [lease], 10) == [Settled.DONE]
    other = await store.renew(Kind.DOWNLOAD, "other", [replace(lease, generation=9)], 10)
    assert other == [Settled.LEASE_LOST]


@pytest.mark.row("F15")
async def test_f15_a_file_stored_by_a_run_that_died_is_deleted_with_its_job(store: JobStore) -> None:
    """Killed between storing and completing, and failed in the end: nobody else would delete the file."""
    failed = Outcome(verdict=Verdict.FAILED, error="x", error_code=ErrorCode.HTTP_STATUS)
    died, plain = (spec_for(store, name) for name in "ab")
    await store.submit([Submission(spec=died)])
    await store.lease(Kind.DOWNLOAD, "dead", 1, 0.001)
    await trio.sleep(0.01)
    assert await store.sweep(Kind.DOWNLOAD) == [died.id]
    await store.submit([Submission(spec=plain)])
    leases = (await store.lease(Kind.DOWNLOAD, "me", 2, 10)).leases
    await store.settle("me", [downloaded(lease, failed, None, 0.0) for lease in leases])
    batch = await store.reap(9, 60)
    assert {job.spec.id: job.has_file for job in batch.jobs} == {died.id: True, plain.id: False}


@pytest.mark.slow
async def test_a_subscription_without_messages_is_kept(redis_settings: RedisSettings) -> None:
    settings = redis_settings.model_copy(update={"timeout": 1.0})
    wakes: list[float] = []
    async with asyncio_loop(), open_store(settings) as store, trio.open_nursery() as nursery:
        await nursery.start(store.listen, {Kind.DOWNLOAD: lambda *_: wakes.append(trio.current_time())})
        await trio.sleep(4 * settings.timeout)  # several times as long as it takes to be asked
        nursery.cancel_scope.cancel()
    assert len(wakes) == 1
