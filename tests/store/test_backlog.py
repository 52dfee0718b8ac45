"""Pending work: sums, destinations of callbacks, and failed callbacks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from downloader.model import CallbackOutcome, ErrorCode, Kind, Outcome, Verdict
from downloader.store import POINT_MS, Backlog, CallbackPlan, Changed, JobStore, Submission, Waiting
from downloader.store.values import AUDITED, POINTS
from downloader.store.views import backlog as backlog_of
from downloader.wire import AuditEntry, BacklogPoint, FailedDestination, WaitingDestination, moment
from servers.jobs import closed, downloaded, spec_for, tried_again
from servers.raw_store import RawStore

DONE = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
LATER = Outcome(verdict=Verdict.RETRY, error="x", error_code=ErrorCode.CONNECT)


async def finished(store: JobStore, destination: str) -> str:
    """The id of a job with a pending callback to this destination."""
    spec = spec_for(store, f"of {destination}")
    await store.submit([Submission(spec=spec)])
    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 10)).leases
    await store.settle("me", [downloaded(lease, DONE, CallbackPlan(queue=destination, limit=4), 60)])
    return spec.id


async def test_nothing_waits(store: JobStore) -> None:
    none = Waiting(pending=0, queues=0, next_ms=None)
    assert await store.backlog(9) == Backlog(
        now_ms=0, downloads=none, callbacks=none, failed_callbacks=0, destinations=[], failed_to=[]
    )


async def test_pending_tasks_are_summed_and_the_largest_destinations_listed(store: JobStore) -> None:
    for name in ("http many", "http many", "http many", "http one", "sqs two", "sqs two"):
        await finished(store, name)
    [lease] = (await store.lease(Kind.CALLBACK, "me", 1, 10)).leases
    for _ in range(3):
        await store.submit([Submission(spec=spec_for(store, "a"))])
    [download] = (await store.lease(Kind.DOWNLOAD, "me", 1, 10)).leases
    found = await store.backlog(2)
    assert (found.downloads.pending, found.downloads.queues) == (2, 1)
    assert (found.callbacks.pending, found.callbacks.queues) == (5, 3)
    assert [(each.destination, each.pending + each.in_flight) for each in found.destinations] == [
        ("http many", 3),
        ("sqs two", 2),
    ]
    assert {each.destination: each.in_flight for each in found.destinations}[lease.queue] == 1
    now = moment(found.now_ms)
    assert now is not None
    due = [each.due_at for each in found.destinations]
    assert all(at is not None and now - timedelta(seconds=10) < at <= now for at in due)
    assert found.downloads.next_ms is None

    await store.settle("me", [tried_again(download, LATER, 60)])
    await store.lease(Kind.DOWNLOAD, "me", 1, 10)
    assert (await store.backlog(2)).downloads.next_ms is None, "its queue is full"
    await store.submit([Submission(spec=spec_for(store, "b"))])
    [other] = (await store.lease(Kind.DOWNLOAD, "me", 1, 10)).leases
    await store.settle("me", [tried_again(other, LATER, 60)])
    found = await store.backlog(2)
    assert found.downloads.next_ms == pytest.approx(found.now_ms + 60_000, abs=10_000)


async def test_a_failed_callback_counts_until_it_is_retried_or_its_time_is_up(
    raw: RawStore, store: JobStore
) -> None:
    ids = [await finished(store, name) for name in ("http a", "http b", "http c")]
    leases = (await store.lease(Kind.CALLBACK, "me", 9, 10)).leases
    ends = [Verdict.FAILED, Verdict.FAILED, Verdict.SUCCEEDED]
    outcomes = [CallbackOutcome(verdict=end) for end in ends]
    await store.settle(
        "me", [closed(lease, outcome, 60, 4) for lease, outcome in zip(leases, outcomes, strict=True)]
    )
    found = await store.backlog(9)
    failed_to = [FailedDestination(destination=lease.queue, failed=1) for lease in leases[:2]]
    assert (found.failed_callbacks, found.failed_to) == (2, failed_to)
    failed = [lease.id for lease in leases[:2]]
    assert await store.retry(failed[0], download=False, limit=4) is Changed.DONE
    found = await store.backlog(9)
    assert (found.failed_callbacks, found.failed_to) == (1, failed_to[1:])
    key = raw.key("failed")
    raw.command("ZADD", key, 1, failed[1])
    found = await store.backlog(9)
    assert (found.failed_callbacks, found.failed_to) == (0, [])
    await store.reap(9, 60)
    assert raw.command("EXISTS", key) == 0
    assert set(failed) < set(ids)


async def test_a_success_after_a_retry_of_an_earlier_version_ends_the_failure(
    raw: RawStore, store: JobStore
) -> None:
    """Its `retry` leaves the job in `failed`."""
    job_id = await finished(store, "http a")
    [lease] = (await store.lease(Kind.CALLBACK, "me", 9, 10)).leases
    await store.settle("me", [closed(lease, CallbackOutcome(verdict=Verdict.FAILED), 60, 4)])
    key = raw.key("failed")
    until = raw.command("ZSCORE", key, job_id)
    await store.retry(job_id, download=False, limit=4)
    raw.command("ZADD", key, until, job_id)
    [lease] = (await store.lease(Kind.CALLBACK, "me", 9, 10)).leases
    await store.settle("me", [closed(lease, CallbackOutcome(verdict=Verdict.SUCCEEDED), 60, 4)])
    assert (await store.backlog(9)).failed_callbacks == 0


def shard(destination: str, pending: int, due: str, following: str) -> list[object]:
    """What `backlog.lua` answers for a shard."""
    load = ["name", destination, "pending", pending, "running", 1, "limit", "4", "due", due]
    kind = ["pending", pending, "queues", 1, "next", following]
    waiting = ["download", kind, "callback", kind, "destinations", [load]]
    groups = ["job_groups", pending, "sealed", 1]
    return ["now", 9000, "failed", 2, *waiting, "failed_to", [destination, 2, "of all", 3], *groups]


def test_shards_are_one_fleet() -> None:
    found = backlog_of([shard("a", 1, "5", "0"), shard("b", 2, "0", "7000"), shard("a", 3, "4", "8000")], 1)
    kind = Waiting(pending=6, queues=3, next_ms=7000)
    assert found == Backlog(
        now_ms=9000,
        downloads=kind,
        callbacks=kind,
        failed_callbacks=6,
        destinations=[WaitingDestination(destination="a", pending=4, in_flight=2, limit=8, due_at=moment(4))],
        failed_to=[FailedDestination(destination="of all", failed=9)],
        job_groups=3,
        sealed_groups=1,
    )


async def test_the_oldest_download_is_one_that_only_waits_for_a_slot(store: JobStore, raw: RawStore) -> None:
    for name, due in (("paused", 1_000), ("old", 2_000), ("new", 3_000)):
        spec = spec_for(store, name)
        await store.submit([Submission(spec=spec)])
        raw.command("ZADD", raw.key("pending", "download", name), due, spec.id)
    await store.adjust("paused", {"paused": True})
    assert (await store.backlog(9)).oldest_due_ms == 2_000
    await store.adjust("old", {"paused": True})
    assert (await store.backlog(9)).oldest_due_ms == 3_000
    await store.adjust("new", {"paused": True})
    assert (await store.backlog(9)).oldest_due_ms is None


async def test_the_history_is_of_one_day_with_one_point_for_five_minutes(
    store: JobStore, raw: RawStore
) -> None:
    step = timedelta(milliseconds=POINT_MS)
    now = datetime.now(UTC)

    async def note(ago: int, downloads: int) -> None:
        at = now - ago * step
        await store.note_backlog(BacklogPoint(at=at, downloads=downloads, callbacks=0, succeeded=0, failed=0))

    await note(300, 1)
    await note(287, 2)
    for downloads in (3, 4):
        await note(1, downloads)
    await note(0, 5)
    assert [point.downloads for point in await store.history()] == [2, 4, 5]
    for damaged in ("nonsense", "{}", "[]"):
        raw.command("HSET", raw.key("history"), "300", damaged)
        assert [point.downloads for point in await store.history()] == [2, 4, 5]
    raw.command("HDEL", raw.key("history"), "300")
    for ago in range(2 * POINTS):
        await note(ago, 6)
    assert raw.command("HLEN", raw.key("history")) == POINTS


async def test_the_newest_changes_are_kept(raw: RawStore, store: JobStore) -> None:
    begin = datetime(2026, 12, 2, tzinfo=UTC)

    def change(number: int, action: str, **changed: object) -> AuditEntry:
        at = begin + timedelta(seconds=number)
        return AuditEntry(at=at, action=action, token="anna", client="::1", changed=changed)

    pause = change(0, "pause_all", paused=True)
    await store.note_change(pause)
    text = change(1, "cancel", job_id="1").model_dump_json()
    for _ in range(AUDITED):
        raw.command("XADD", raw.key("audit", "jobs"), "*", "entry", text)
    newest = change(2, "cancel_jobs", aggr_id="a", count=0)
    await store.note_change(newest)
    without_zone = pause.model_dump_json().replace("Z", "").replace("2026", "2025")
    for damaged in ('{"at": 1}', without_zone):
        raw.command("XADD", raw.key("audit", "fleet"), "*", "entry", damaged)
    changes = await store.changes(2 * AUDITED)
    assert len(changes) == AUDITED + 2, "the oldest change of a job is gone"
    assert (changes[0], changes[-2]) == (newest, pause), "changes of jobs replace no pause"
    assert await store.changes(1) == [newest]


async def test_the_batches_of_one_run_are_one_change(store: JobStore) -> None:
    begin = datetime(2026, 12, 2, tzinfo=UTC)
    batch = AuditEntry(
        at=begin, action="retry_jobs", token="anna", client="::1", changed={"count": 200, "query": {"q": "a"}}
    )
    for number in range(5):
        await store.note_change(batch.model_copy(update={"at": begin + number * timedelta(seconds=50)}))
    [run] = await store.changes(AUDITED)
    assert (run.changed["count"], run.at) == (1000, begin + timedelta(seconds=200))

    later = batch.model_copy(update={"at": run.at + timedelta(seconds=61)})
    of_others: list[dict[str, object]] = [
        {"token": "bert"},
        {"client": "::2"},
        {"changed": {"count": 1, "query": {"q": "b"}}},
    ]
    others = [later.model_copy(update=values) for values in of_others]
    single = later.model_copy(update={"action": "retry", "changed": {"job_id": "1"}})
    different = [later, *others, single, single]
    for entry in different:
        await store.note_change(entry)
    changes = await store.changes(AUDITED)
    assert sorted(map(repr, changes)) == sorted(map(repr, [run, *different]))
