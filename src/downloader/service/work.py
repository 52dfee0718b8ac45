"""The two workloads: what is done with a lease, and what is counted and logged at its end."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

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
)
from downloader.notify import Bulkhead, Deferred, Notifier, deliver
from downloader.observe import Counters, Event, get_logger
from downloader.scheduler import End, Workload, callback_settler, download_settler
from downloader.store import JobStore, Settled

log = get_logger()

DELIVERY_LEASES = 2
"""A backend that has not come back after this many leases hangs: its callback is tried again later.
Leases are prolonged meanwhile, so this is no bound on them, only longer than any backend's own timeout."""

_DOWNLOADS: Mapping[Verdict, tuple[Event, str]] = {
    Verdict.SUCCEEDED: (Event.JOB_SUCCEEDED, "downloads_succeeded"),
    Verdict.FAILED: (Event.JOB_FAILED, "downloads_failed"),
    Verdict.RETRY: (Event.JOB_RETRY, "downloads_retried"),
    Verdict.RELEASE: (Event.JOB_RELEASED, "downloads_released"),
}
_CALLBACKS: Mapping[Verdict, tuple[Event, str]] = {
    Verdict.SUCCEEDED: (Event.CALLBACK_DELIVERED, "callbacks_delivered"),
    Verdict.FAILED: (Event.CALLBACK_FAILED, "callbacks_failed"),
    Verdict.RETRY: (Event.CALLBACK_RETRY, "callbacks_retried"),
    Verdict.RELEASE: (Event.CALLBACK_RELEASED, "callbacks_released"),
}


def download_workload(
    store: JobStore,
    fetcher: Fetcher,
    *,
    settings: Settings,
    owner: str,
    counters: Counters,
    may_lease: Callable[[], bool],
) -> Workload:
    """Downloads: each lease is one attempt."""
    bound = log.bind()  # once: to bind for each job costs more than what it then does not print

    async def work(lease: Lease, still_ours: Callable[[], bool]) -> End:
        if lease.crashes >= POISON_CRASHES:
            return Outcome(
                verdict=Verdict.FAILED,
                error=f"its worker died {lease.crashes} times",
                error_code=ErrorCode.POISON,
            )
        return await fetcher.attempt(lease, still_ours=still_ours)

    def on_end(lease: Lease, end: End, _: Settled, seconds: float) -> None:
        assert isinstance(end, Outcome)
        event, counter = _DOWNLOADS[end.verdict]
        counters.add(counter)
        counters.add("bytes", end.file.size)
        if end.error_code is ErrorCode.POISON:
            event = Event.JOB_POISON
        _log_end(bound, event, lease, end.error, seconds, code=end.error_code.value, status=end.response_code)

    return Workload(
        kind=Kind.DOWNLOAD,
        concurrency=settings.processor.concurrency,
        lease_s=settings.processor.lease,
        work=work,
        settle=download_settler(
            store,
            owner,
            per_destination=settings.notifier.per_destination,
            keep_s=settings.notifier.failed_retention,
        ),
        may_lease=may_lease,
        on_end=on_end,
        on_lost=lambda _: counters.add("leases_lost"),
        on_swept=lambda _: counters.add("leases_recovered"),
    )


def callback_workload(
    store: JobStore,
    backends: Mapping[str, Notifier],
    *,
    settings: Settings,
    owner: str,
    counters: Counters,
    bulkhead: Bulkhead,
    rng: random.Random,
    download_url: Callable[[JobSpec], str],
) -> Workload:
    """Callbacks: each lease is one delivery, if its backend has a slot for it."""
    bound = log.bind()

    async def send(lease: Lease) -> Delivery:
        return await deliver(
            lease,
            backends=backends,
            schedule=settings.notifier.retry_schedule,
            download_url=download_url,
            timeout_s=delivery_timeout_s(settings),
            rng=rng,
            health=bulkhead.health,
        )

    async def work(lease: Lease, _: Callable[[], bool]) -> End:
        if lease.crashes >= POISON_CRASHES:
            return Delivery(verdict=Verdict.FAILED, error=f"its worker died {lease.crashes} times")
        backend = _backend(lease)
        if not backend:  # that becomes a failure, which takes no time
            return await send(lease)
        slot = await bulkhead.acquire(backend)
        if isinstance(slot, Deferred):
            return Delivery(verdict=Verdict.RELEASE, error=slot.reason, retry_after_s=slot.delay_s)
        try:
            return await send(lease)
        finally:
            bulkhead.release(slot)

    def on_end(lease: Lease, end: End, _: Settled, seconds: float) -> None:
        event, counter = _CALLBACKS[end.verdict]
        counters.add(counter)
        _log_end(bound, event, lease, end.error, seconds)

    return Workload(
        kind=Kind.CALLBACK,
        concurrency=settings.notifier.concurrency,
        lease_s=settings.notifier.lease,
        work=work,
        settle=callback_settler(
            store,
            owner,
            per_destination=settings.notifier.per_destination,
            deletion_s=settings.notifier.deletion_interval,
            failed_s=settings.notifier.failed_retention,
        ),
        on_end=on_end,
        on_lost=lambda _: counters.add("leases_lost"),
        on_swept=lambda _: counters.add("leases_recovered"),
    )


def delivery_timeout_s(settings: Settings) -> float:
    """How long a backend may take for a delivery."""
    return settings.notifier.lease * DELIVERY_LEASES


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
    if error:
        bound.info(event, **facts, error=error, **more)
    else:
        bound.debug(event, **facts)
