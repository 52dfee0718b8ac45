"""What is done with a lease, and what is counted and logged at its end."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
import structlog
import trio
import trio.testing

from downloader.config import Settings
from downloader.fetch import Fetcher
from downloader.ids import new_id
from downloader.model import (
    POISON_CRASHES,
    CallbackOutcome,
    Cooldown,
    ErrorCode,
    JobSpec,
    Kind,
    Lease,
    Outcome,
    StartRate,
    Verdict,
    now_ms,
)
from downloader.notify import Bulkhead, Delivered, Payload, Result
from downloader.observe import NOTIFIER_COUNTERS, PROCESSOR_COUNTERS, Counters
from downloader.scheduler import Held, LeaseEnd
from downloader.scheduler.leases import HeldLease
from downloader.service.instance import own_limits, own_rates
from downloader.service.roles import LONG_S, MOST_LONG, running_long
from downloader.service.work import Callbacks, Downloads, within_age, within_deadline
from downloader.store import Settlement

NONE = cast("Any", None)
CLUSTER = {"url": "redis://127.0.0.1", "cluster": True}


def lease(kind: Kind) -> Lease:
    spec = JobSpec(id=new_id(0, 1), aggr_id="a", aggr_limit=1, url="http://x/")
    result = Outcome(verdict=Verdict.SUCCEEDED) if kind is Kind.CALLBACK else None
    return Lease(kind=kind, spec=spec, queue="a", generation=1, attempts=0, crashes=0, limit=1, result=result)


def downloads() -> Downloads:
    return Downloads(
        settings=Settings(),
        counters=Counters(PROCESSOR_COUNTERS),
        fetcher=NONE,
        disk_has_room=lambda: True,
        delete=NONE,
    )


def callbacks() -> Callbacks:
    return Callbacks(
        settings=Settings(),
        counters=Counters(NOTIFIER_COUNTERS),
        backends={},
        bulkhead=NONE,
        rng=random.Random(0),
        download_url=NONE,
        leases_at_stop=False,
    )


class Fetched:
    """A fetcher whose attempts end with this outcome, after the clock has advanced."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.attempts = 0
        self.stay = trio.lowlevel.checkpoint
        self.downloads: Downloads | None = None
        self.received: Mapping[str, int] = {}

    async def attempt(
        self,
        lease: Lease,  # noqa: ARG002
        *,
        still_ours: Callable[[], bool],  # noqa: ARG002
        on_progress: Callable[[int, int | None], None],
    ) -> Outcome:
        if not self.outcome.cooldown:
            on_progress(7, None)
        self.received = dict(self.downloads.received) if self.downloads else {}
        self.attempts += 1
        await self.stay()
        return self.outcome


SUCCEEDED = Outcome(verdict=Verdict.SUCCEEDED)
COOLDOWN = Cooldown(seconds=1, asked=True)
THROTTLED = Outcome(verdict=Verdict.THROTTLED, error="429", response_code=429, cooldown=COOLDOWN)
LATER = CallbackOutcome(verdict=Verdict.RETRY, error="no")
RETRY = Outcome(verdict=Verdict.RETRY, error="no", error_code=ErrorCode.TIMEOUT, retry_after_s=120)


async def attempted(outcome: Outcome, left_s: float) -> tuple[Outcome, int]:
    """How a job with so many seconds left ends, and how often it was requested."""
    work = downloads()
    fetcher = Fetched(outcome)
    work.fetcher = cast("Any", fetcher)
    job = lease(Kind.DOWNLOAD)
    job = replace(job, spec=replace(job.spec, deadline=now_ms() + int(left_s * 1000)))
    end = (await work.attempt(job, lambda: True)).outcome
    assert end is not None
    return end, fetcher.attempts


class Receiver:
    """A backend that takes every callback."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    async def deliver(self, destination: str, payload: Payload) -> Result:  # noqa: ARG002
        self.taken.append(payload.job_id)
        return Delivered()


def callback() -> tuple[Callbacks, Receiver, Lease]:
    """With one slot for all callbacks."""
    work, receiver, job = callbacks(), Receiver(), lease(Kind.CALLBACK)
    work.backends = {"http": receiver}
    work.bulkhead = Bulkhead(work.backends, slots=1, rng=random.Random(0))
    work.download_url = lambda _, __: "http://files/x"
    spec = replace(job.spec, callback_type="http", callback_dst="http://c/")
    return work, receiver, replace(job, spec=spec)


async def test_what_a_site_still_sends_counts_as_accepted_in_the_rate_of_starts() -> None:
    async with trio.open_nursery() as nursery:
        work, sending = downloads(), Fetched(SUCCEEDED)
        sending.stay = trio.sleep_forever
        work.fetcher = cast("Any", sending)
        nursery.start_soon(work.attempt, lease(Kind.DOWNLOAD), lambda: True)
        await trio.testing.wait_all_tasks_blocked()
        work.fetcher = cast("Any", Fetched(THROTTLED))
        end = (await work.attempt(lease(Kind.DOWNLOAD), lambda: True)).outcome
        assert end is not None
        assert end.cooldown == replace(COOLDOWN, had=StartRate(1, 2))
        nursery.cancel_scope.cancel()


@pytest.mark.row("F6")
@pytest.mark.parametrize("crashes", [POISON_CRASHES - 1, POISON_CRASHES])
async def test_a_download_whose_workers_have_died_too_often_fails_without_a_request(crashes: int) -> None:
    work, fetcher = downloads(), Fetched(SUCCEEDED)
    work.fetcher = cast("Any", fetcher)
    end = (await work.attempt(replace(lease(Kind.DOWNLOAD), crashes=crashes), lambda: True)).outcome
    poisoned = crashes == POISON_CRASHES
    assert end is not None
    assert (end.error_code, end.verdict) == (
        (ErrorCode.POISON, Verdict.FAILED) if poisoned else ("", Verdict.SUCCEEDED)
    )
    assert fetcher.attempts == (not poisoned)


@pytest.mark.row("F37")
async def test_a_damaged_job_fails_without_a_request() -> None:
    work, fetcher, job = downloads(), Fetched(SUCCEEDED), lease(Kind.DOWNLOAD)
    work.fetcher = cast("Any", fetcher)
    job = replace(job, spec=JobSpec.from_json(job.id, "{"))
    settlement = await work.attempt(job, lambda: True)
    end = settlement.outcome
    assert end is not None
    assert (end.verdict, end.error_code, end.error) == (
        Verdict.FAILED,
        ErrorCode.STORAGE,
        "the stored job is damaged: no JSON object",
    )
    assert (settlement.callback, fetcher.attempts) == (None, 0)
    with structlog.testing.capture_logs() as logs:
        work.note_end(settlement, 0)
    assert [(entry["event"], entry["log_level"], entry["error"]) for entry in logs] == [
        ("job.failed", "warning", end.error)
    ]
    callback_work, receiver, delivery = callback()
    ended = await callback_work.attempt(replace(delivery, spec=job.spec), lambda: True)
    assert (ended.verdict, ended.error, receiver.taken) == (Verdict.FAILED, end.error, [])


@pytest.mark.row("F6")
@pytest.mark.parametrize("crashes", [POISON_CRASHES - 1, POISON_CRASHES])
async def test_a_callback_whose_workers_have_died_too_often_fails_without_being_sent(crashes: int) -> None:
    work, receiver, job = callback()
    end = await work.attempt(replace(job, crashes=crashes), lambda: True)
    poisoned = crashes == POISON_CRASHES
    assert end.verdict is (Verdict.FAILED if poisoned else Verdict.SUCCEEDED)
    assert len(receiver.taken) == (not poisoned)


async def test_a_slot_is_free_when_its_callback_was_sent() -> None:
    work, receiver, job = callback()
    for _ in range(3):
        assert (await work.attempt(job, lambda: True)).verdict is Verdict.SUCCEEDED
    assert receiver.taken == [job.id] * 3


async def test_a_callback_without_a_slot_comes_back_after_a_pause() -> None:
    work, receiver, job = callback()
    end = await work.attempt(replace(job, spec=replace(job.spec, callback_type="elsewhere")), lambda: True)
    assert (end.verdict, receiver.taken) == (Verdict.RELEASE, [])
    assert end.delay_s > 0


@pytest.mark.parametrize(
    ("so_far", "sent"),
    [
        ({"age_s": 59, "attempts": 3, "failing": True}, 1),
        ({"age_s": 60, "attempts": 1}, 0),
        ({"age_s": 60, "failing": True}, 0),
        ({"age_s": 60}, 1),
    ],
)
async def test_a_callback_that_is_too_old_has_failed(so_far: dict[str, Any], sent: int) -> None:
    """One that was never tried is sent, unless its destination is failing."""
    work, receiver, job = callback()
    work.settings = Settings.model_validate({"notifier": {"max_age": 60}})
    end = await work.attempt(replace(job, **so_far), lambda: True)
    assert end.error == ("" if sent else "not delivered within 60 s")
    assert end.verdict is (Verdict.SUCCEEDED if sent else Verdict.FAILED)
    assert len(receiver.taken) == sent


@pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.RELEASE])
def test_the_next_attempt_at_a_callback_is_due_before_it_is_too_old(verdict: Verdict) -> None:
    outcome = CallbackOutcome(verdict=verdict, error="no", retry_after_s=30)
    job = lease(Kind.CALLBACK)
    assert within_age(outcome, replace(job, age_s=20), 60) == outcome
    assert within_age(outcome, replace(job, age_s=50), 60) == replace(outcome, retry_after_s=10)
    end = within_age(outcome, replace(job, age_s=61), 60)
    assert (end.verdict, end.error) == (Verdict.FAILED, "not delivered within 60 s: no")
    delivered = CallbackOutcome(verdict=Verdict.SUCCEEDED)
    assert within_age(delivered, replace(job, age_s=61), 60) == delivered


async def test_the_file_of_a_cancelled_job_is_deleted() -> None:
    deleted = []

    async def delete(spec: JobSpec, _: object) -> None:
        deleted.append(spec)

    work, job = downloads(), lease(Kind.DOWNLOAD)
    work.delete = delete
    await work.discard(job)
    assert deleted == [job.spec]


async def test_a_job_leased_after_its_deadline_fails_without_a_request() -> None:
    end, attempts = await attempted(SUCCEEDED, -1)
    assert (end.verdict, end.error_code, attempts) == (Verdict.FAILED, ErrorCode.DEADLINE, 0)


async def test_another_attempt_is_due_at_the_deadline_at_the_latest() -> None:
    end, attempts = await attempted(RETRY, 60)
    assert (end.verdict, attempts) == (Verdict.RETRY, 1)
    assert end.retry_after_s == pytest.approx(60, abs=30)
    assert (await attempted(RETRY, 600))[0] == RETRY


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (RETRY, ErrorCode.DEADLINE),
        (Outcome(verdict=Verdict.THROTTLED, error="no"), ErrorCode.DEADLINE),
        (Outcome(verdict=Verdict.FAILED, error="no", error_code=ErrorCode.TLS), ErrorCode.TLS),
        (SUCCEEDED, ""),
    ],
)
def test_an_outcome_after_the_deadline(outcome: Outcome, code: str) -> None:
    """A file that is stored by then counts."""
    end = within_deadline(outcome, 0)
    assert end.error_code == code
    assert end.verdict is (Verdict.FAILED if code else Verdict.SUCCEEDED)


@pytest.mark.parametrize(
    ("end", "event", "level"),
    [
        (Outcome(verdict=Verdict.SUCCEEDED), "job.succeeded", "debug"),
        (Outcome(verdict=Verdict.FAILED, error="no", error_code=ErrorCode.DNS), "job.failed", "warning"),
        (Outcome(verdict=Verdict.FAILED, error="no", error_code=ErrorCode.POISON), "job.poison", "warning"),
        (Outcome(verdict=Verdict.RETRY, error="no"), "job.retry", "info"),
        (CallbackOutcome(verdict=Verdict.SUCCEEDED), "callback.delivered", "debug"),
        (CallbackOutcome(verdict=Verdict.FAILED, error="no"), "callback.failed", "warning"),
        (CallbackOutcome(verdict=Verdict.RETRY, error="no"), "callback.retry", "info"),
    ],
)
def test_a_final_failure_is_a_warning(end: Outcome | CallbackOutcome, event: str, level: str) -> None:
    kind, work = (Kind.DOWNLOAD, downloads()) if isinstance(end, Outcome) else (Kind.CALLBACK, callbacks())
    with structlog.testing.capture_logs() as lines:
        work.work().on_end(LeaseEnd.SETTLED, Settlement.of(lease(kind), end), 0.1)
    assert [(line["event"], line["log_level"]) for line in lines] == [(event, level)]


@pytest.mark.parametrize("end", [LeaseEnd.LOST, LeaseEnd.CANCELLED])
def test_a_result_that_was_not_settled_counts_neither_as_success_nor_as_failure(end: LeaseEnd) -> None:
    work = downloads()
    with structlog.testing.capture_logs() as lines:
        work.work().on_end(end, Settlement.of(lease(Kind.DOWNLOAD), SUCCEEDED), 0.1)
    assert lines == []
    counts = {series: count for series, count in work.counters.series().items() if count}
    assert counts == ({"leases_lost": 1} if end is LeaseEnd.LOST else {})


async def test_the_job_of_a_failed_callback_is_kept_longer() -> None:
    work, _, job = callback()
    notifier = work.settings.notifier
    assert notifier.deletion_interval < notifier.failed_retention
    delivered = await work.attempt(job, lambda: True)
    failed = await work.attempt(replace(job, crashes=POISON_CRASHES), lambda: True)
    assert (delivered.verdict, delivered.keep_s) == (Verdict.SUCCEEDED, notifier.deletion_interval)
    assert (failed.verdict, failed.keep_s) == (Verdict.FAILED, notifier.failed_retention)


@pytest.mark.parametrize(
    ("tables", "of_shard"),
    [
        ({"notifier": {"per_destination": 16}}, 16),
        ({"notifier": {"per_destination": 64}, "redis": CLUSTER}, 4),
        ({"notifier": {"per_destination": 9}, "redis": CLUSTER}, 1),
    ],
)
async def test_a_shard_has_its_part_of_the_callbacks_to_a_destination(
    tables: dict[str, Any], of_shard: int
) -> None:
    work = callbacks()
    work.settings = Settings.model_validate(tables)
    settlement = await work.attempt(replace(lease(Kind.CALLBACK), crashes=POISON_CRASHES), lambda: True)
    assert settlement.callback is not None
    assert settlement.callback.limit == of_shard


@pytest.mark.parametrize(("redis", "of_shard"), [({}, 32), (CLUSTER, 2)])
def test_a_destination_has_a_limit_of_its_own(redis: dict[str, Any], of_shard: int) -> None:
    destinations = [
        {"match": "https://Hooks.test:443", "concurrency": 32},
        {"match": "https://other.test", "batch": 2},
        *({"match": "https://wrong.test", "concurrency": wrong} for wrong in (0, "2", None)),
    ]
    tables = {"redis": redis, "backends": {"http": {"destinations": destinations}}}
    assert own_limits(Settings.model_validate(tables)) == {"http https://hooks.test": of_shard}
    assert own_limits(Settings.model_validate({"backends": {"http": {"destinations": 1}, "sqs": {}}})) == {}


def test_a_destination_has_a_rate_of_its_own() -> None:
    destinations = [
        {"match": "https://Hooks.test:443", "rate": 0.5},
        {"match": "https://other.test", "batch": 2},
        *({"match": "https://wrong.test", "rate": wrong} for wrong in (0, "2", None)),
    ]
    tables = {"backends": {"http": {"destinations": destinations}}}
    assert own_rates(Settings.model_validate(tables)) == {"http https://hooks.test": 0.5}
    assert own_rates(Settings.model_validate({"backends": {"http": {"destinations": 1}}})) == {}


async def test_both_ends_of_a_callback_name_the_limit_of_its_destination() -> None:
    """Its record is made when the download ends, and gets the limit again when the callback ends."""
    _, _, job = callback()
    limits = {"http http://c": 2}
    done = Outcome(verdict=Verdict.SUCCEEDED)
    downloading = replace(downloads(), fetcher=cast("Fetcher", Fetched(done)), own_limits=limits)
    settlement = await downloading.attempt(replace(lease(Kind.DOWNLOAD), spec=job.spec), lambda: True)
    assert settlement.callback is not None
    assert (settlement.callback.queue, settlement.callback.limit) == ("http http://c", 2)
    work = replace(callback()[0], own_limits=limits)
    closed = await work.attempt(replace(job, queue="http http://c"), lambda: True)
    assert closed.callback is not None
    assert closed.callback.limit == 2


async def test_the_bytes_of_a_running_download_are_known_until_it_ends() -> None:
    work, task = downloads(), lease(Kind.DOWNLOAD)
    fetcher = Fetched(SUCCEEDED)
    fetcher.downloads, work.fetcher = work, cast("Any", fetcher)
    await work.attempt(task, lambda: True)
    assert (fetcher.received, work.received) == ({task.id: 7}, {})


async def test_a_report_has_the_downloads_that_have_run_longest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    held: Held = {}
    for _ in range(MOST_LONG + 1):
        entry = HeldLease(
            lease(Kind.DOWNLOAD), asked_at=0, lease_s=60, longest_s=60, clock=float, work_until=math.inf
        )
        held[entry] = None
    ids = [entry.lease.id for entry in held]
    assert running_long(held, {}) == {}
    await trio.sleep(LONG_S)
    assert running_long(held, {ids[3]: 9}) == dict.fromkeys(ids[:MOST_LONG], 0) | {ids[3]: 9}
    for entry in list(held)[1:]:
        entry.started_at = trio.current_time()
    assert list(running_long(held, {})) == ids[:1]


@pytest.mark.parametrize("kind", Kind)
def test_a_line_says_where_it_failed_and_in_which_trace(kind: Kind) -> None:
    task = lease(kind)
    task = replace(task, spec=replace(task.spec, traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01"))
    work = downloads() if kind is Kind.DOWNLOAD else callbacks()
    with structlog.testing.capture_logs() as lines:
        work.note_end(Settlement.of(task, RETRY if kind is Kind.DOWNLOAD else LATER), 1.0)
    [line] = lines
    assert line["trace_id"] == "ab" * 16
    where = ("host", "x") if kind is Kind.DOWNLOAD else ("destination", "a")
    assert line[where[0]] == where[1]
