"""The two kinds of leased work: what is done with a lease, and what is traced, counted and logged."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from structlog.typing import FilteringBoundLogger

from downloader.config import Settings
from downloader.fetch import Fetcher
from downloader.model import (
    POISON_CRASHES,
    CallbackOutcome,
    ErrorCode,
    JobSpec,
    Kind,
    Lease,
    Outcome,
    Verdict,
    callback_limit,
    now_ms,
)
from downloader.net import Url, UrlError, redact_url
from downloader.notify import Bulkhead, Deferred, Notifier, send_callback
from downloader.observe import Counters, Event, SpanKind, Traces, get_logger
from downloader.scheduler import Delete, LeaseEnd, StillOurs, Work, delete_file
from downloader.service.instance import SEALED
from downloader.service.predecessor import Workers
from downloader.service.start_rates import Starts
from downloader.store import CallbackPlan, Settlement, limit_of_shard

log = get_logger()

DELIVERY_LEASES = 2
"""Time limit of a delivery, in leases; longer than the timeouts of all backends. The lease is renewed
meanwhile. A delivery that takes longer counts as hanging, and the callback is tried again later."""

QUEUED_S = 60.0
"""How long a callback may wait for a slot of the backend, before the lease counts as hanging."""

SEALED_DELAY_S = 60.0
"""Delay of a job that this instance cannot decrypt. Long, because all jobs may be encrypted."""

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


_MESSAGING = {"kafka": "kafka", "sqs": "aws_sqs"}
"""`messaging.system` by the type of a callback."""


@dataclass(kw_only=True, eq=False)
class Downloads:
    """Downloads: each lease is one attempt."""

    settings: Settings
    counters: Counters
    fetcher: Fetcher
    disk_has_room: Callable[[], bool]
    delete: Delete
    own_limits: Mapping[str, int] = field(default_factory=dict)
    """See `callback_limit`."""
    traces: Traces | None = None
    workers: Workers = field(default_factory=Workers)
    received: dict[str, int] = field(default_factory=dict)
    """Bytes so far of the running downloads that have received some, by job id."""
    starts: Starts | None = field(init=False)
    """`None` with a fixed pace."""
    log: FilteringBoundLogger = field(default_factory=log.bind)
    """Bound once, because binding a logger for each job takes more CPU than a line that is not printed."""

    def __post_init__(self) -> None:
        self.starts = Starts(self.received) if self.settings.processor.pace == "adaptive" else None

    def work(self) -> Work:
        """The `Work` of the scheduler for downloads."""
        return Work(
            kind=Kind.DOWNLOAD,
            concurrency=self.settings.processor.concurrency,
            lease_s=self.settings.processor.lease,
            longest_s=self._longest_s,
            work=self.attempt,
            on_end=partial(_on_end, self.counters, self.note_end),
            on_sweep=partial(self.counters.add, "leases_recovered"),
            discard=self.discard,
            may_lease=self.disk_has_room,
        )

    def _longest_s(self, lease: Lease) -> float:
        processor = self.settings.processor
        return min(lease.spec.download_timeout or processor.download_timeout, processor.max_download_timeout)

    async def attempt(self, lease: Lease, still_ours: StillOurs) -> Settlement:
        """Attempt the download once.

        A job without a callback is kept for `failed_retention`, like a job whose callback failed.
        """
        _note_wait(self.counters, lease)
        outcome = await self._outcome(lease, still_ours)
        notifier = self.settings.notifier
        success = outcome.verdict is Verdict.SUCCEEDED
        limit = limit_of_shard(notifier.per_destination, self.settings.redis)
        plan = CallbackPlan.of(lease.spec, success=success, per_destination=limit, own_limits=self.own_limits)
        return Settlement.of(lease, outcome, callback=plan, keep_s=notifier.failed_retention)

    async def _outcome(self, lease: Lease, still_ours: StillOurs) -> Outcome:
        if lease.spec.sealed:
            return Outcome(
                verdict=Verdict.RELEASE,
                error=SEALED,
                error_code=ErrorCode.STORAGE,
                retry_after_s=SEALED_DELAY_S,
            )
        if lease.spec.damage:
            return Outcome(verdict=Verdict.FAILED, error=lease.spec.damage, error_code=ErrorCode.STORAGE)
        if lease.crashes >= POISON_CRASHES:
            return Outcome(verdict=Verdict.FAILED, error=_poisoned(lease), error_code=ErrorCode.POISON)
        if lease.spec.left_s(now_ms()) <= 0:
            return _OVERDUE
        with self.workers.working(lease.queue):
            attempt = partial(
                self.fetcher.attempt,
                lease,
                still_ours=still_ours,
                on_progress=lambda received, _: self.received.__setitem__(lease.id, received),
            )
            if self.starts is not None:
                attempt = partial(self.starts.counted, lease, attempt)
            try:
                outcome = await (traced_download(self.traces, lease, attempt) if self.traces else attempt())
            finally:
                self.received.pop(lease.id, None)
        return within_deadline(outcome, lease.spec.left_s(now_ms()))

    async def discard(self, lease: Lease) -> None:
        """Delete a file that was stored before this process learned of the cancel.

        Also needed after a cancelled attempt, because a thread that publishes the file is not interrupted.
        """
        await delete_file(lease.spec, (), self.delete)

    def note_end(self, settlement: Settlement, seconds: float) -> None:
        """Count and log an attempt that was settled."""
        outcome = settlement.outcome or Outcome(verdict=settlement.verdict, error=settlement.error)
        event, counter = _DOWNLOADS[outcome.verdict]
        self.counters.add(counter, 1, outcome.error_code)
        self.counters.add("bytes", outcome.file.size)
        self.counters.observe("download_seconds", seconds)
        self.workers.ended(outcome)
        if outcome.error_code is ErrorCode.POISON:
            event = Event.JOB_POISON
            self.counters.add("poison")
        code, status = str(outcome.error_code), outcome.response_code
        _log_end(self.log, event, settlement, seconds, code=code, status=status)


_OVERDUE = Outcome(
    verdict=Verdict.FAILED, error="not done by the job's deadline", error_code=ErrorCode.DEADLINE
)


def within_deadline(outcome: Outcome, left_s: float) -> Outcome:
    """An attempt's outcome, limited by the `left_s` seconds until the job's deadline.

    A further attempt is due at the deadline at the latest. After the deadline the outcome is a failure.
    """
    if outcome.verdict in (Verdict.SUCCEEDED, Verdict.FAILED):
        return outcome
    if left_s <= 0:
        return replace(
            _OVERDUE,
            response_code=outcome.response_code,
            cooldown=outcome.cooldown,
            phases=outcome.phases,
        )
    return replace(outcome, retry_after_s=min(outcome.retry_after_s or 0.0, left_s))


def within_age(outcome: CallbackOutcome, lease: Lease, max_age: float) -> CallbackOutcome:
    """A delivery's outcome, limited by the callback's greatest age in seconds.

    A further attempt is due at that age at the latest. Above that age the outcome is a failure.
    """
    if outcome.verdict in (Verdict.SUCCEEDED, Verdict.FAILED):
        return outcome
    left_s = max_age - lease.age_s
    if left_s <= 0:
        error = f"{_too_old(max_age)}: {outcome.error}" if outcome.error else _too_old(max_age)
        return replace(outcome, verdict=Verdict.FAILED, error=error, retry_after_s=None)
    return replace(outcome, retry_after_s=min(outcome.retry_after_s or 0.0, left_s))


@dataclass(kw_only=True, eq=False)
class Callbacks:
    """Callbacks: each lease is one delivery, if the backend has a free slot."""

    settings: Settings
    counters: Counters
    backends: Mapping[str, Notifier]
    bulkhead: Bulkhead
    rng: random.Random
    download_url: Callable[[JobSpec, str], str]
    leases_at_stop: bool
    own_limits: Mapping[str, int] = field(default_factory=dict)
    """See `callback_limit`."""
    traces: Traces | None = None
    log: FilteringBoundLogger = field(default_factory=log.bind)
    """See `Downloads.log`."""

    def work(self) -> Work:
        """The `Work` of the scheduler for callbacks."""
        return Work(
            kind=Kind.CALLBACK,
            concurrency=self.settings.notifier.concurrency,
            lease_s=self.settings.notifier.lease,
            longest_s=lambda _: QUEUED_S + delivery_timeout_s(self.settings),
            work=self.attempt,
            on_end=partial(_on_end, self.counters, self.note_end),
            on_sweep=partial(self.counters.add, "leases_recovered"),
            types=self.backends,
            leases_at_stop=self.leases_at_stop,
        )

    async def attempt(self, lease: Lease, _: StillOurs) -> Settlement:
        """Deliver the callback once. A job whose callback failed is kept longer."""
        _note_wait(self.counters, lease)
        notifier = self.settings.notifier
        limit = limit_of_shard(notifier.per_destination, self.settings.redis)
        delivery = within_age(await self._delivery(lease), lease, notifier.max_age)
        success = delivery.verdict is Verdict.SUCCEEDED
        return Settlement.of(
            lease,
            delivery,
            callback=CallbackPlan(
                queue=lease.queue, limit=callback_limit(lease.queue, limit, self.own_limits)
            ),
            keep_s=notifier.deletion_interval if success else notifier.failed_retention,
        )

    async def _delivery(self, lease: Lease) -> CallbackOutcome:
        """Deliver, or hand the callback back for some seconds if the backend has no free slot."""
        if lease.spec.sealed:
            return CallbackOutcome(verdict=Verdict.RELEASE, error=SEALED, retry_after_s=SEALED_DELAY_S)
        if error := self._given_up(lease):
            return CallbackOutcome(verdict=Verdict.FAILED, error=error)
        backend = _backend(lease)
        if not backend:  # `send_callback` then fails it at once, so it needs no slot
            return await self._deliver(lease)
        slot = await self.bulkhead.acquire(backend, proven=lease.proven)
        if isinstance(slot, Deferred):
            return CallbackOutcome(verdict=Verdict.RELEASE, error=slot.reason, retry_after_s=slot.delay_s)
        try:
            if self.traces:
                return await traced_callback(self.traces, lease, self._deliver)
            return await self._deliver(lease)
        finally:
            self.bulkhead.release(slot)

    def _given_up(self, lease: Lease) -> str:
        """Why the callback fails without being sent; empty for a callback to be sent."""
        if lease.crashes >= POISON_CRASHES:
            return _poisoned(lease)
        max_age = self.settings.notifier.max_age
        # A callback that has never been tried, because all notifiers were down, is tried once at any age.
        too_old = lease.age_s >= max_age and (lease.attempts or lease.failing)
        return _too_old(max_age) if too_old else ""

    async def _deliver(self, lease: Lease) -> CallbackOutcome:
        return await send_callback(
            lease,
            backends=self.backends,
            schedule=self.settings.notifier.retry_schedule,
            download_url=self.download_url,
            timeout_s=delivery_timeout_s(self.settings),
            rng=self.rng,
            health=self.bulkhead.health,
        )

    def note_end(self, settlement: Settlement, seconds: float) -> None:
        """Count and log a delivery that was settled."""
        event, counter = _CALLBACKS[settlement.verdict]
        backend = _backend(settlement.lease)
        self.counters.add(counter, 1, backend)
        self.counters.observe("delivery_seconds", seconds, backend)
        if settlement.lease.crashes >= POISON_CRASHES:
            self.counters.add("poison")
        _log_end(self.log, event, settlement, seconds)


def _note_wait(counters: Counters, lease: Lease) -> None:
    """Count how long a task has waited."""
    if lease.waited_s is not None:
        counters.observe("queue_wait_seconds", lease.waited_s)


def _on_end(
    counters: Counters,
    note_end: Callable[[Settlement, float], None],
    end: LeaseEnd,
    settlement: Settlement,
    seconds: float,
) -> None:
    match end:
        case LeaseEnd.SETTLED:
            note_end(settlement, seconds)
        case LeaseEnd.LOST:
            counters.add("leases_lost")
        case LeaseEnd.CANCELLED:
            pass  # the API has logged it


def delivery_timeout_s(settings: Settings) -> float:
    """How long a backend may take for a delivery."""
    return settings.notifier.lease * DELIVERY_LEASES


def _poisoned(lease: Lease) -> str:
    return f"its worker died {lease.crashes} times"


def _too_old(max_age: float) -> str:
    return f"not delivered within {max_age:g} s"


def _backend(lease: Lease) -> str:
    assert lease.result is not None, "a callback's lease carries the download's result"
    return lease.spec.callback(success=lease.result.verdict is Verdict.SUCCEEDED)[0]


def _log_end(
    bound: FilteringBoundLogger, event: Event, settlement: Settlement, seconds: float, **more: str | int
) -> None:
    lease, error = settlement.lease, settlement.error
    fields = {
        "job_id": lease.id,
        "aggr_id": lease.spec.aggr_id,
        "attempt": lease.attempts + 1,
        "seconds": round(seconds, 3),
    }
    if not error and event not in _ALARMING:
        bound.debug(event, **fields)
        return
    if lease.kind is Kind.DOWNLOAD:
        fields["host"] = _of_url(lease.spec.url)["server.address"]
    else:
        fields["destination"] = lease.queue
    if lease.spec.traceparent:
        fields["trace_id"] = lease.spec.traceparent[3:35]
    (bound.warning if event in _ALARMING else bound.info)(event, **fields, error=error, **more)


async def traced_download(traces: Traces, lease: Lease, attempt: Callable[[], Awaitable[Outcome]]) -> Outcome:
    """Make the attempt in a span. The origin gets no `traceparent`."""
    attributes = {"http.request.method": "GET", **_of_job(lease), **_of_url(lease.spec.url)}
    if lease.attempts:
        attributes["http.request.resend_count"] = lease.attempts
    name = f"download {attributes['server.address']}"
    with traces.span(
        name, kind=SpanKind.CLIENT, parent=lease.spec.traceparent, attributes=attributes
    ) as span:
        outcome = await attempt()
        if outcome.response_code:
            span.set({"http.response.status_code": outcome.response_code})
        if outcome.verdict is Verdict.SUCCEEDED:
            span.set({"http.response.body.size": outcome.file.size})
        else:
            of_status = outcome.error_code is ErrorCode.HTTP_STATUS
            span.fail(str(outcome.response_code if of_status else outcome.error_code), outcome.error)
    return outcome


async def traced_callback(
    traces: Traces, lease: Lease, deliver: Callable[[Lease], Awaitable[CallbackOutcome]]
) -> CallbackOutcome:
    """Deliver in a span; the callback carries the span's context."""
    assert lease.result is not None, "a callback's lease carries the download's result"
    backend, destination = lease.spec.callback(success=lease.result.verdict is Verdict.SUCCEEDED)
    attributes = _of_job(lease) | {"downloader.callback.type": backend}
    kind = SpanKind.CLIENT
    if backend == "http":
        attributes |= {"http.request.method": "POST", **_of_url(destination)}
    elif backend in _MESSAGING:
        kind = SpanKind.PRODUCER
        attributes |= {
            "messaging.system": _MESSAGING[backend],
            "messaging.operation.type": "send",
            "messaging.operation.name": "send",
            "messaging.destination.name": redact_url(destination),
        }
    with traces.span(
        f"callback {backend}", kind=kind, parent=lease.spec.traceparent, attributes=attributes
    ) as span:
        delivery = await deliver(replace(lease, spec=replace(lease.spec, traceparent=span.traceparent)))
        if delivery.verdict is not Verdict.SUCCEEDED:
            span.fail(str(delivery.verdict), delivery.error)
    return delivery


def _of_job(lease: Lease) -> dict[str, str | int]:
    return {"downloader.job.id": lease.id, "downloader.aggregation": lease.spec.aggr_id}


def _of_url(text: str) -> dict[str, str | int]:
    """The attributes of a URL, without query and userinfo."""
    try:
        origin = Url.parse(text, "download").origin
    except UrlError:  # accepted by another version
        return {"url.full": redact_url(text), "server.address": ""}
    return {"url.full": redact_url(text), "server.address": origin.host, "server.port": origin.port}
