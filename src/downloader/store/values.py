"""The values that the store takes and returns, besides those of `model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from downloader.model import (
    CallbackOutcome,
    JobSpec,
    Lease,
    Outcome,
    State,
    Verdict,
    callback_group,
    callback_limit,
)

# What the transitions take and return


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job on its way into the store."""

    spec: JobSpec
    """With an id from `JobStore.new_id`."""
    idempotency_key: str = ""
    """Digest of the client's `Idempotency-Key` and token; empty if the client sent no key."""
    value_digest: str = ""
    """Digest of the job's values, kept with the key and compared when the key is known."""
    body_digest: str = ""
    """Digest of the request body: what earlier versions kept with a key, for a day."""
    permits: Callable[[str], bool] | None = None
    """Called with the proxy that the aggregation has already: may the job use it? `None`: it may use any."""


class Accepted(StrEnum):
    """What became of a submission."""

    NEW = "new"
    REPEATED = "repeated"
    """The idempotency key is known with the same job; the answer has the first job's id."""
    CONFLICT = "conflict"
    """The idempotency key is known with another job; nothing was enqueued."""
    PROXIED = "proxied"
    """Its aggregation has a proxy that it may not use; nothing was enqueued."""
    UNAVAILABLE = "unavailable"
    """Its shard refused it for now, or did not answer. In the latter case it may have been enqueued."""


class Settled(StrEnum):
    """The store's answer to `renew` and `settle`, for one lease."""

    DONE = "done"
    """Applied; also when this very call had been applied before."""
    LEASE_LOST = "lease_lost"
    """Another generation holds or has finished the task; nothing was changed."""
    CANCELLED = "cancelled"
    """A client has cancelled the job. A call that settles has freed its slot and changed nothing else."""
    UNKNOWN = "unknown"
    """Its shard did not answer: the call may have been applied. Repeat it."""


class Changed(StrEnum):
    """What became of a client's call to retry or to cancel a job."""

    DONE = "done"
    """Done, now or by an earlier call."""
    UNKNOWN = "unknown"
    """There is no such job."""
    CONFLICT = "conflict"
    """The job's state does not allow it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Which tasks a lease call may give to an instance; depends on what the instance has in flight."""

    last: Sequence[str] = ()
    """Groups that give tasks only if no other group can."""
    never: Sequence[str] = ()
    """Groups that give no tasks."""
    unproven: int = 1_000_000
    """How many callbacks at the most may go to destinations that have not answered lately."""
    suspects: int = 0
    """How many tasks under which two workers have died the instance works on; it gets one at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseBatch:
    """Answer to one lease call."""

    leases: Sequence[Lease]
    next_due_s: float | None
    """Seconds until another task can run (0: now, as the batch was full); `None`: no such time is known."""


ALL_SHARES = Shares()
"""Any task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackPlan:
    """The callback of a finished download."""

    group: str
    limit: int

    @classmethod
    def of(cls, spec: JobSpec, *, success: bool, per_destination: int) -> Self | None:
        """That of a job whose download ended so; `None` if it has no callback.

        `per_destination`: see `callback_limit`.
        """
        kind, destination = spec.callback(success=success)
        if not kind:
            return None
        group = callback_group(kind, destination)
        return cls(group=group, limit=callback_limit(group, per_destination))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """How the work on a leased task ended; the verdict decides which transition the store makes."""

    lease: Lease
    verdict: Verdict
    error: str = ""
    delay_s: float = 0.0
    """Seconds until the task is due again, with `RETRY`, `THROTTLED` and `RELEASE`."""
    outcome: Outcome | None = None
    """How the attempt at a download ended; `None` for a callback, and for a download without an attempt."""
    callback: CallbackPlan | None = None
    """The callback that the end of this download makes pending, or the callback that has ended."""
    keep_s: float = 0.0
    """Seconds for which a job is kept after its callback, or after its download if it has no callback."""

    @classmethod
    def of(
        cls,
        lease: Lease,
        end: Outcome | CallbackOutcome,
        *,
        callback: CallbackPlan | None = None,
        keep_s: float = 0.0,
    ) -> Self:
        """The settlement of a lease under which a download or a delivery was attempted."""
        return cls(
            lease=lease,
            verdict=end.verdict,
            error=end.error,
            delay_s=end.retry_after_s or 0.0,
            outcome=end if isinstance(end, Outcome) else None,
            callback=callback,
            keep_s=keep_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reapable:
    """A job whose file and record are due to be deleted."""

    spec: JobSpec
    has_file: bool
    """Whether a file may have been stored, in the service's storage or in the bucket that the job named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapBatch:
    """Answer to one reap call."""

    jobs: Sequence[Reapable]
    next_due_s: float | None
    """Seconds until the next job is due; `None` if there is none."""


# What is read

COUNTED_FAILURES = 500
"""Failed callbacks whose destinations a `Backlog` counts: less than a millisecond of the store's time."""

SUMMED_GROUPS = 1000
"""Groups whose tasks a `Backlog` sums: a few tenths of a millisecond of the store's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A task as `GET /jobs/<id>` shows it."""

    state: State | str
    """A plain string if a newer version has stored a state that this version does not know."""
    attempts: int
    deliveries: int
    """How often it was leased."""
    crashes: int
    due_ms: int | None
    started_ms: int | None
    finished_ms: int | None
    log: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """Failed attempts, the newest last, at most five: `{"at_ms", "error"}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """What the API shows of one job."""

    spec: JobSpec
    download: TaskView
    outcome: Outcome | None
    """The last attempt's outcome; `None` before the first has ended."""
    callback: TaskView | None
    """`None` if the download has not finished, or the job has no callback."""
    kept_until_ms: int | None
    """When file and record are deleted; `None` while download or callback goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationLoad:
    """What an aggregation is doing."""

    aggr_id: str
    pending: int
    in_flight: int
    """Downloads leased now, over the fleet."""
    limit: int
    paused: bool
    cooling_until_ms: int | None = None
    """Unix time until which nothing of it starts, because its origin asked for a pause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the fleet is doing: the busiest aggregations, and totals over all of them."""

    aggregations: Sequence[AggregationLoad]
    """By number of pending and running downloads, the most first."""
    total: int
    """Number of aggregations with work, including those that are not listed."""
    downloads: int
    """In flight, of all aggregations."""
    callbacks: int
    """In flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How much of one kind waits."""

    pending: int
    """Tasks; those of the `SUMMED_GROUPS` largest groups, if there are more."""
    groups: int
    """Aggregations or destinations with tasks that are pending or running."""
    next_ms: int | None
    """Unix time at which the next waiting task is due; `None`: none waits for a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationLoad:
    """What waits for a destination of callbacks."""

    destination: str
    """Its group: the backend's name, and a host, queue, topic or prefix."""
    pending: int
    in_flight: int
    limit: int
    """How many may be in flight, over the fleet; 1 after a failure, until one is delivered."""
    due_ms: int | None
    """Unix time at which its first pending callback was or will be due; `None`: none is pending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """What waits, over all shards."""

    now_ms: int = field(compare=False)
    """The store's time."""
    downloads: Waiting
    callbacks: Waiting
    failed_callbacks: int
    """Kept, and can be sent again."""
    destinations: Sequence[DestinationLoad]
    """The destinations with the most callbacks that are pending or in flight, the largest first."""
    failed_to: Sequence[tuple[str, int]]
    """Destinations and how many of their callbacks have failed, the most first; of `COUNTED_FAILURES` in each
    shard."""


class Listed(StrEnum):
    """The lists of jobs that the store can read page by page."""

    FINISHED = "finished"
    """Download and callback are over, or there is no callback; by the time at which they are deleted."""
    FAILED_CALLBACKS = "failed callbacks"
    """Like `FINISHED`, and the callback failed. A callback that was retried may be among them."""
    FAILED_DOWNLOADS = "failed downloads"
    """The download failed, the callback may go on; by when it failed."""
    RUNNING = "running"
    """The download runs; by the end of the lease. A job whose lease is renewed may come again."""
    PENDING = "pending"
    """The download waits; by the time at which it is due. Of one aggregation only."""
    FAILURES = "failures"
    """Download or callback failed lately, the newest first; a bounded list, of one page."""
