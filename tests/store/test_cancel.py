"""A job that a client cancels: the results for the download, the slot and the callback."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from downloader.model import (
    CallbackOutcome,
    ErrorCode,
    FileFacts,
    JobSpec,
    Kind,
    Lease,
    Outcome,
    State,
    Verdict,
)
from downloader.store import CallbackPlan, Changed, JobStore, JobView, Settled
from servers.jobs import closed, downloaded, handed_back, spec_for, submitted, tried_again
from servers.raw_store import RawStore

OK = Outcome(verdict=Verdict.SUCCEEDED, response_code=200, file=FileFacts(size=3, sha256="ab" * 32))
FAILED = Outcome(verdict=Verdict.FAILED, error="e", error_code=ErrorCode.TIMEOUT)
RETRY = Outcome(verdict=Verdict.RETRY, error="e", error_code=ErrorCode.TIMEOUT)
PLAN = CallbackPlan(queue="http c", limit=4)


async def leased(store: JobStore, kind: Kind = Kind.DOWNLOAD) -> Lease:
    [lease] = (await store.lease(kind, "me", 9, 10)).leases
    return lease


async def cancelled(store: JobStore, spec: JobSpec, plan: CallbackPlan | None = PLAN) -> Changed:
    return await store.cancel(spec, plan, 60)


async def seen(store: JobStore, job_id: str) -> JobView:
    view = await store.get(job_id)
    assert view is not None
    return view


async def lapse(raw: RawStore, store: JobStore, key: str, *parameters: str, member: str) -> None:
    """Move the end of a lease to now."""
    raw.command("ZADD", raw.key(key, *parameters), 1, member)


async def nothing_waits(store: JobStore) -> bool:
    return not (await store.lease(Kind.DOWNLOAD, "me", 9, 10)).leases


@pytest.mark.parametrize("attempts", [0, 1])
async def test_a_cancelled_pending_job_never_starts(store: JobStore, attempts: int) -> None:
    spec = await submitted(store)
    for _ in range(attempts):
        await store.settle("me", [tried_again(await leased(store), RETRY, 60)])
    assert await cancelled(store, spec) is Changed.DONE
    assert await nothing_waits(store)
    assert await store.aggregation_sizes() == {}
    view = await seen(store, spec.id)
    assert (view.download.state, view.download.attempts) == (State.CANCELLED, attempts)
    assert view.download.finished_at is not None
    callback = await leased(store, Kind.CALLBACK)
    assert callback.result is not None
    assert (callback.result.verdict, callback.result.error_code) == (Verdict.FAILED, ErrorCode.CANCELLED)
    assert (callback.result.error, callback.result_attempts) == ("cancelled by a client", attempts)


@pytest.mark.parametrize("how", ["finish", "retry_later", "release"])
async def test_a_running_job_keeps_its_slot_until_its_holder_has_stopped(store: JobStore, how: str) -> None:
    spec = await submitted(store)
    lease = await leased(store)
    other = await submitted(store)
    assert await cancelled(store, spec) is Changed.DONE
    assert await store.renew(Kind.DOWNLOAD, "me", [lease], 10) == [Settled.CANCELLED]
    assert await nothing_waits(store), "its origin may still be sending"
    load = await store.load(9)
    assert (load.downloads, load.aggregations[0].in_flight) == (1, 1)
    for _ in range(2):  # the second is a repetition
        match how:
            case "finish":
                answer = await store.settle("me", [downloaded(lease, OK, PLAN, 60)])
            case "retry_later":
                answer = await store.settle("me", [tried_again(lease, RETRY, 0)])
            case _:
                answer = await store.settle("me", [handed_back(lease, "", 0)])
        assert answer == [Settled.CANCELLED]
    assert (await leased(store)).id == other.id
    download = (await seen(store, spec.id)).download
    assert download.state == "cancelled"
    assert [failure.error for failure in download.errors] == ["cancelled by a client"]
    callback = await leased(store, Kind.CALLBACK)
    assert callback.result is not None
    assert callback.result.error_code is ErrorCode.CANCELLED


async def test_the_slot_is_not_another_s_to_free(store: JobStore) -> None:
    spec = await submitted(store)
    lease = await leased(store)
    await submitted(store)
    await cancelled(store, spec)
    assert await store.settle("another", [handed_back(lease, "", 0)]) == [Settled.LEASE_LOST]
    assert await nothing_waits(store)


@pytest.mark.parametrize("sweeper", list(Kind))
@pytest.mark.parametrize("removed", [False, True])
async def test_the_slot_of_a_holder_that_died_is_free_at_its_lease_s_end(
    raw: RawStore,
    store: JobStore,
    removed: bool,  # noqa: FBT001  # a parameter of the test
    sweeper: Kind,
) -> None:
    spec = await submitted(store)
    await leased(store)
    other = await submitted(store)
    assert await store.cancel(spec, None, 0) is Changed.DONE
    if removed:
        await lapse(raw, store, "reap", member=spec.id)
        assert [job.has_file for job in (await store.reap(9, 60)).jobs] == [True], "it may have stored one"
        await store.remove([spec.id])
    assert await store.sweep(sweeper) == []
    assert await nothing_waits(store)
    await lapse(raw, store, "stopping", member=f"{spec.id} a")
    assert await store.sweep(sweeper) == []
    assert (await leased(store)).id == other.id
    view = await store.get(spec.id)
    assert view is None if removed else view is not None and view.download.state == "cancelled"


async def test_a_job_whose_work_does_not_end_keeps_its_slot(raw: RawStore, store: JobStore) -> None:
    """A thread that waits for the disk cannot be ended; its holder goes on renewing."""
    spec = await submitted(store)
    lease = await leased(store)
    await submitted(store)
    await store.cancel(spec, None, 60)
    await lapse(raw, store, "stopping", member=f"{spec.id} a")
    assert await store.renew(Kind.DOWNLOAD, "me", [lease], 30) == [Settled.CANCELLED]
    await store.sweep(Kind.DOWNLOAD)
    assert await nothing_waits(store)


async def test_a_lease_whose_answer_was_lost_is_not_given_again(raw: RawStore, store: JobStore) -> None:
    spec = await submitted(store)
    ask = {"kind": "download", "owner": "me", "request": "request-1", "count": 1, "lease_ms": 10_000}
    ask |= {"last": [], "never": [], "unproven": 0}
    raw.run("lease", ask)
    await cancelled(store, spec)
    assert (raw.run("lease", ask))[3] == []


async def test_a_finished_download_is_not_cancelled(store: JobStore) -> None:
    for outcome in (OK, FAILED):
        spec = await submitted(store)
        await store.settle("me", [downloaded(await leased(store), outcome, PLAN, 60)])
        before = await seen(store, spec.id)
        assert await cancelled(store, spec) is Changed.CONFLICT
        assert await seen(store, spec.id) == before
        await leased(store, Kind.CALLBACK)
    assert await cancelled(store, spec_for(store)) is Changed.UNKNOWN


async def test_a_repetition_changes_nothing(store: JobStore) -> None:
    spec = await submitted(store)
    for _ in range(2):
        assert await cancelled(store, spec) is Changed.DONE
    await leased(store, Kind.CALLBACK)
    before = await seen(store, spec.id)
    assert await cancelled(store, spec) is Changed.DONE
    assert await seen(store, spec.id) == before
    assert await store.retry(spec.id, download=True, limit=4) is Changed.CONFLICT


async def test_a_job_without_a_callback_is_kept_for_a_while(raw: RawStore, store: JobStore) -> None:
    spec = await submitted(store)
    await store.cancel(spec, None, 60)
    assert (await store.reap(9, 60)).jobs == []
    await lapse(raw, store, "reap_ended", member=spec.id)
    assert [(job.spec.id, job.has_file) for job in (await store.reap(9, 60)).jobs] == [(spec.id, False)]


async def test_a_holder_frees_the_slot_of_a_job_that_nobody_keeps(store: JobStore) -> None:
    spec = await submitted(store)
    lease = await leased(store)
    assert await store.cancel(spec, None, 0) is Changed.DONE
    batch = await store.reap(9, 60)
    await store.remove([job.spec.id for job in batch.jobs])
    assert await store.settle("me", [downloaded(lease, OK, None, 0)]) == [Settled.CANCELLED]
    assert (await store.load(9)).downloads == 0


async def test_holders_are_notified_of_a_cancel(store: JobStore, nursery: trio.Nursery) -> None:
    send, receive = trio.open_memory_channel[str](9)
    wakes = {Kind.DOWNLOAD: lambda *_: send.send_nowait("wake")}
    runs = await submitted(store)
    await leased(store)
    waits = await submitted(store)
    await nursery.start(partial(store.listen, wakes, cancelled=send.send_nowait))
    with trio.fail_after(20):
        assert await receive.receive() == "wake"  # of the subscription itself
        for spec in (waits, runs):
            await cancelled(store, spec)
        assert await receive.receive() == runs.id


@pytest.mark.parametrize("plan", [None, PLAN])
async def test_a_job_is_not_deleted_before_its_holder_has_stopped(
    store: JobStore, plan: CallbackPlan | None
) -> None:
    """The holder may still store a file, and needs the records to delete it."""
    spec = await submitted(store)
    lease = await leased(store)
    assert await cancelled(store, spec, plan) is Changed.DONE
    if plan is not None:
        delivered = CallbackOutcome(verdict=Verdict.SUCCEEDED)
        await store.settle("me", [closed(await leased(store, Kind.CALLBACK), delivered, 60, 4)])
    assert await store.purge(spec.id) is Changed.CONFLICT
    assert await store.settle("me", [downloaded(lease, OK, plan, 60)]) == [Settled.CANCELLED]
    assert await store.purge(spec.id) is Changed.DONE
    assert [job.has_file for job in (await store.reap(9, 60)).jobs] == [True]


@pytest.mark.row("F37")
async def test_a_running_job_that_was_damaged_gives_back_its_slot(raw: RawStore, store: JobStore) -> None:
    spec = await submitted(store)
    lease = await leased(store)
    other = await submitted(store)
    raw.command("SET", raw.key("job", spec.id), "{}")
    damaged = (await seen(store, spec.id)).spec
    assert damaged.aggr_id == "", "the job does not name its aggregation any more"
    assert await cancelled(store, damaged, None) is Changed.DONE
    assert await store.settle("me", [downloaded(lease, OK, None, 60)]) == [Settled.CANCELLED]
    assert (await leased(store)).id == other.id
