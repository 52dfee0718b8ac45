"""The two workloads: what is done with a lease, and what is counted and logged at its end."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from structlog.typing import FilteringBoundLogger

from downloader.config import Settings
from downloader.fetch import Fetcher
from downloader.model import (
    POISON_CRASHES,
    Delivery,
    ErrorCode,
    JobSpec,
    Kind,
    Lease,
    Outcome,
    Verdict,
    callback_limit,
    now_ms,
)
from downloader.notify import Bulkhead, Deferred, Notifier, deliver
from downloader.observe import Counters, Event, Traces, get_logger
from downloader.scheduler import End, Ended, Workload, delete_file, settle
from downloader.service.predecessor import Workers
from downloader.service.traced import traced_callback, traced_download
from downloader.store import CallbackPlan, CloseResult, FinishResult, JobStore, Settled

log = get_logger()

DELIVERY_LEASES = 2
"""A delivery that takes longer than this many leases counts as hanging, and the callback
is tried again later. It is longer than the timeouts of all backends; the lease is renewed meanwhile."""

SEALED_DELAY_S = 60.0
"""When a job that this instance cannot decrypt is due again. Long, because there may be many such jobs."""

_SEALED = "the job is encrypted with a key that is not in redis.encryption_keys"

_DOWNLOADS: Mapping[Verdict, tuple[Event, str]] = {
    Verdict.SUCCEEDED: (Event.JOB_SUCCEEDED, "downloads_succeeded"),
    Verdict.FAILED: (Event.JOB_FAILED, "downloads_failed"),
    Verdict.RETRY: (Event.JOB_RETRY, "downloads_retried"),
    Verdict.RELEASE: (Event.JOB_RELEASED, "downloads_released"),
    Verdict.THROTTLED: (Event.JOB_THROTTLED, "downloads_throttled"),
}
_CALLBACKS: Mapping[Verdict, tuple[Event, str]] = {
    Verdict.SUCCEEDED: (Event.CALLBACK_DELIVERED, "callbacks_delivered"),
    Verdict.FAILED: (Event.CALLBACK_FAILED, "callbacks_failed"),
    Verdict.RETRY: (Event.CALLBACK_RETRY, "callbacks_retried"),
    Verdict.RELEASE: (Event.CALLBACK_RELEASED, "callbacks_released"),
}
_ALARMING = (Event.JOB_FAILED, Event.JOB_POISON, Event.CALLBACK_FAILED)
"""Final failures, which are logged as warnings: no further attempt follows."""


@dataclass(kw_only=True, eq=False)
class _LeasedWork(Workload):
    """What both kinds of work have in common."""

    store: JobStore
    settings: Settings
    owner: str
    counters: Counters
    traces: Traces | None = None
    log: FilteringBoundLogger = field(default_factory=log.bind)
    """Bound once, because binding a logger for each job takes more CPU than a line that is not printed."""

    def begun(self, lease: Lease) -> None:
        """Count how long a task has waited."""
        if lease.waited_s is not None:
            self.counters.observe("queue_wait_seconds", lease.waited_s)

    def lost(self) -> None:
        """Count a lease that ended before its work."""
        self.counters.add("leases_lost")

    def swept(self, count: int) -> None:
        """Count tasks taken from dead instances."""
        self.counters.add("leases_recovered", count)


@dataclass(kw_only=True, eq=False)
class DownloadWork(_LeasedWork):
    """Downloads: each lease is one attempt."""

    fetcher: Fetcher
    disk_has_room: Callable[[], bool]
    delete: Callable[[JobSpec], Awaitable[None]]
    """Deletes a job's file."""
    workers: Workers = field(default_factory=Workers)

    def __post_init__(self) -> None:
        self.kind = Kind.DOWNLOAD
        self.concurrency = self.settings.processor.concurrency
        self.lease_s = self.settings.processor.lease

    def may_lease(self) -> bool:
        """Whether the disk has room."""
        return self.disk_has_room()

    async def work(self, lease: Lease, still_ours: Callable[[], bool]) -> End:
        """Attempt the download, or fail the job if its workers have died too often.

        A job that this instance cannot decrypt is handed back: another one may have the key.
        """
        self.begun(lease)
        if lease.spec.sealed:
            return Outcome(
                verdict=Verdict.RELEASE,
                error=_SEALED,
                error_code=ErrorCode.STORAGE,
                retry_after_s=SEALED_DELAY_S,
            )
        if lease.crashes >= POISON_CRASHES:
            return Outcome(verdict=Verdict.FAILED, error=_poisoned(lease), error_code=ErrorCode.POISON)
        if lease.spec.left_s(now_ms()) <= 0:
            return _OVERDUE
        with self.workers.working(lease.group):
            attempt = partial(self.fetcher.attempt, lease, still_ours=still_ours)
            outcome = await (traced_download(self.traces, lease, attempt) if self.traces else attempt())
        return within_deadline(outcome, lease.spec.left_s(now_ms()))

    async def discard(self, lease: Lease) -> None:
        """Delete the file if it was stored before this process learned of the cancel.

        Also where the attempt was cancelled: a thread that was publishing the file finishes first.
        """
        await delete_file(lease.spec, self.delete)

    async def settle(self, results: Sequence[Ended]) -> Sequence[Settled]:
        """Report attempts. A job without a callback is kept as long as one whose callback has failed."""
        return await settle(self.store, self.kind, self.owner, results, self._finish)

    async def _finish(self, results: Sequence[Ended]) -> Sequence[Settled]:
        notifier = self.settings.notifier
        rows: list[FinishResult] = []
        for lease, end in results:
            assert isinstance(end, Outcome)
            success = end.verdict is Verdict.SUCCEEDED
            plan = CallbackPlan.of(lease.spec, success=success, per_destination=notifier.per_destination)
            rows.append((lease, end, plan, notifier.failed_retention))
        return await self.store.finish(self.owner, rows)

    def ended(self, lease: Lease, end: End, seconds: float) -> None:
        """Count and log an attempt."""
        assert isinstance(end, Outcome)
        event, counter = _DOWNLOADS[end.verdict]
        self.counters.add(counter, 1, end.error_code)
        self.counters.add("bytes", end.file.size)
        self.counters.observe("download_seconds", seconds)
        self.workers.ended(end)
        if end.error_code is ErrorCode.POISON:
            event = Event.JOB_POISON
            self.counters.add("poison")
        _log_end(
            self.log, event, lease, end.error, seconds, code=str(end.error_code), status=end.response_code
        )


_OVERDUE = Outcome(
    verdict=Verdict.FAILED, error="not done by the job's deadline", error_code=ErrorCode.DEADLINE
)


def within_deadline(outcome: Outcome, left_s: float) -> Outcome:
    """An attempt's outcome, with this many seconds left until the job's deadline.

    If there would be another attempt, it is due at the deadline at the latest, and then fails the job.
    """
    if outcome.verdict in (Verdict.SUCCEEDED, Verdict.FAILED):
        return outcome
    if left_s <= 0:
        return replace(_OVERDUE, response_code=outcome.response_code, cooldown=outcome.cooldown)
    return replace(outcome, retry_after_s=min(outcome.retry_after_s or 0.0, left_s))


@dataclass(kw_only=True, eq=False)
class CallbackWork(_LeasedWork):
    """Callbacks: each lease is one delivery, if its backend has a slot for it."""

    backends: Mapping[str, Notifier]
    bulkhead: Bulkhead
    rng: random.Random
    download_url: Callable[[JobSpec], str]
    leases_at_stop: bool

    def __post_init__(self) -> None:
        self.kind = Kind.CALLBACK
        self.concurrency = self.settings.notifier.concurrency
        self.lease_s = self.settings.notifier.lease

    async def work(self, lease: Lease, still_ours: Callable[[], bool]) -> End:  # noqa: ARG002  # none to ask
        """Deliver the callback, or hand it back for some seconds if its backend has no free slot.

        One that this instance cannot decrypt is handed back too, as `DownloadWork` does.
        """
        self.begun(lease)
        if lease.spec.sealed:
            return Delivery(verdict=Verdict.RELEASE, error=_SEALED, retry_after_s=SEALED_DELAY_S)
        if lease.crashes >= POISON_CRASHES:
            return Delivery(verdict=Verdict.FAILED, error=_poisoned(lease))
        backend = _backend(lease)
        if not backend:  # `deliver` then fails it at once, so it needs no slot
            return await self._deliver(lease)
        slot = await self.bulkhead.acquire(backend, proven=lease.proven)
        if isinstance(slot, Deferred):
            return Delivery(verdict=Verdict.RELEASE, error=slot.reason, retry_after_s=slot.delay_s)
        try:
            if self.traces:
                return await traced_callback(self.traces, lease, self._deliver)
            return await self._deliver(lease)
        finally:
            self.bulkhead.release(slot)

    async def _deliver(self, lease: Lease) -> Delivery:
        return await deliver(
            lease,
            backends=self.backends,
            schedule=self.settings.notifier.retry_schedule,
            download_url=self.download_url,
            timeout_s=delivery_timeout_s(self.settings),
            rng=self.rng,
            health=self.bulkhead.health,
        )

    async def settle(self, results: Sequence[Ended]) -> Sequence[Settled]:
        """Report deliveries. The job of a failed one is kept longer."""
        return await settle(self.store, self.kind, self.owner, results, self._close)

    async def _close(self, results: Sequence[Ended]) -> Sequence[Settled]:
        notifier = self.settings.notifier
        rows: list[CloseResult] = []
        for lease, end in results:
            assert isinstance(end, Delivery)
            success = end.verdict is Verdict.SUCCEEDED
            keep_s = notifier.deletion_interval if success else notifier.failed_retention
            rows.append((lease, end, keep_s, callback_limit(lease.group, notifier.per_destination)))
        return await self.store.close_callbacks(self.owner, rows)

    def ended(self, lease: Lease, end: End, seconds: float) -> None:
        """Count and log a delivery."""
        event, counter = _CALLBACKS[end.verdict]
        backend = _backend(lease)
        self.counters.add(counter, 1, backend)
        self.counters.observe("delivery_seconds", seconds, backend)
        if lease.crashes >= POISON_CRASHES:
            self.counters.add("poison")
        _log_end(self.log, event, lease, end.error, seconds)


def delivery_timeout_s(settings: Settings) -> float:
    """How long a backend may take for a delivery."""
    return settings.notifier.lease * DELIVERY_LEASES


def _poisoned(lease: Lease) -> str:
    return f"its worker died {lease.crashes} times"


def _backend(lease: Lease) -> str:
    assert lease.result is not None, "a callback's lease carries the download's result"
    return lease.spec.callback(success=lease.result.verdict is Verdict.SUCCEEDED)[0]


def _log_end(
    bound: FilteringBoundLogger, event: Event, lease: Lease, error: str, seconds: float, **more: str | int
) -> None:
    facts = {
        "job_id": lease.id,
        "aggr_id": lease.spec.aggr_id,
        "attempt": lease.attempts + 1,
        "seconds": round(seconds, 3),
    }
    if event in _ALARMING:
        bound.warning(event, **facts, error=error, **more)
    elif error:
        bound.info(event, **facts, error=error, **more)
    else:
        bound.debug(event, **facts)
