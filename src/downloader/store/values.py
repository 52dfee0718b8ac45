"""Arguments and results of the store, in addition to the values in `model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Self

from downloader.model import (
    NO_LIMITS,
    CallbackOutcome,
    JobSpec,
    Lease,
    Outcome,
    Verdict,
    callback_limit,
    callback_queue,
)
from downloader.wire import AggregationLoad, FailedDestination, Task, WaitingDestination

# Arguments and results of the transitions


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job to be enqueued."""

    spec: JobSpec
    """With an id from `JobStore.new_id`."""
    idempotency_key: str = ""
    """Digest of the client's `Idempotency-Key` and token; empty if the client sent no key."""
    value_digest: str = ""
    """Digest of the job's values, stored with the idempotency key and compared when the key comes again."""
    body_digest: str = ""
    """Digest of the request body, which earlier versions stored with a key, for a day."""
    quota: Mapping[str, int] | None = None
    """The most `jobs`, `bytes`, `aggregations` and `groups` that may count for the token, each absent without
    a bound; `None`: the job does not count."""
    permits: Callable[[str], bool] | None = None
    """Whether the job may use the aggregation's present proxy, which is the argument; `None`: any proxy."""


class Accepted(StrEnum):
    """The store's answer to `submit`, for a job."""

    NEW = "new"
    REPEATED = "repeated"
    """The idempotency key was used before for the same job; the answer has the first job's id."""
    CONFLICT = "conflict"
    """The idempotency key was used before for a different job; nothing was enqueued."""
    PROXIED = "proxied"
    """The aggregation has a proxy that the job may not use; nothing was enqueued."""
    OVER_QUOTA = "over_quota"
    """The token has too much pending; nothing was enqueued. Instead of an id the result has the name of the
    quota: `jobs`, `bytes`, `aggregations` or `groups`."""
    SEALED = "sealed"
    """The job's group takes no more jobs; nothing was enqueued."""
    UNAVAILABLE = "unavailable"
    """The shard refused the job for now, or did not answer. Without an answer the job may have been
    enqueued."""


class Settled(StrEnum):
    """The store's answer to `renew` and `settle`, for a lease."""

    DONE = "done"
    """Applied, now or by an earlier try of the same call."""
    LEASE_LOST = "lease_lost"
    """Another generation holds or has finished the task; nothing was changed."""
    CANCELLED = "cancelled"
    """A client has cancelled the job. `settle` has freed the slot and changed nothing else."""
    UNKNOWN = "unknown"
    """The shard did not answer. The call may have been applied, and is to be repeated."""


class Changed(StrEnum):
    """The store's answer to `retry`, `cancel` and `purge`."""

    DONE = "done"
    """Done, now or by an earlier call."""
    UNKNOWN = "unknown"
    """No job has this id."""
    CONFLICT = "conflict"
    """The job's state does not allow the change."""


class Sharing(StrEnum):
    """The store's answer to `share_file` and `unshare_file`."""

    SHARED = "shared"
    """The job is counted, and the file was stored by jobs that are counted."""
    FOREIGN = "foreign"
    """The job is counted. A file that is there was not stored by a counted job, and is never deleted."""
    WAIT = "wait"
    """Another instance deletes the file."""
    OVER = "over"
    """The download is over; the job was not counted."""
    MANY = "many"
    """The job has shared too many files; the job was not counted."""
    DELETE = "delete"
    """The job is the last one, and the caller is to delete the file."""
    KEPT = "kept"
    """Other jobs have the file, or the job does not; the file is left alone."""


class TokenShare(NamedTuple):
    """Most tasks that a lease call may give to a token."""

    before_last: int = 1_000_000
    """After this many tasks, the token's queues give tasks only if no other queue can."""
    most: int = 1_000_000
    """Most tasks in all."""
    unproven: int = 1_000_000
    """Most callbacks to destinations that have not answered quickly lately."""


_NO_BOUND = TokenShare()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Which tasks a lease call may give to an instance; depends on what the instance has in flight."""

    last: Sequence[str] = ()
    """Queues that give tasks only if no other queue can."""
    never: Sequence[str] = ()
    """Queues that give no tasks."""
    token: TokenShare = _NO_BOUND
    """The share of a token that is not in `tokens`."""
    tokens: Mapping[str, TokenShare] = field(default_factory=dict)
    """Shares of tokens that have tasks in flight, by token."""
    unproven: int = 1_000_000
    """Most callbacks to destinations that have not answered quickly lately."""
    failing: int = 1_000_000
    """Most callbacks to destinations that have failed lately; they count for `unproven` too."""
    suspects: int = 0
    """Number of running tasks that have killed two workers before; an instance gets only one at a time."""

    @property
    def leaves_out(self) -> bool:
        """Whether tasks of some queues or tokens are left out, although the instance may have free slots."""
        return bool(self.never) or any(min(share.most, share.unproven) < 1 for share in self.tokens.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseBatch:
    """The store's answer to `lease`."""

    leases: Sequence[Lease]
    next_due_s: float | None
    """Seconds until the next task can run (0: now, because the batch was full); `None`: unknown."""
    look_s: float | None = None
    """Seconds until this instance must ask again (0: now); `None`: when it has room."""


ALL_SHARES = Shares()
"""Any task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackPlan:
    """The callback of a finished download."""

    queue: str
    limit: int
    token: str = ""
    """The token that the job came with."""

    @classmethod
    def of(
        cls,
        spec: JobSpec,
        *,
        success: bool,
        per_destination: int,
        own_limits: Mapping[str, int] = NO_LIMITS,
    ) -> Self | None:
        """The plan for a job after a success or a failure; `None` if the job has no callback.

        `per_destination`, `own_limits`: see `callback_limit`.
        """
        kind, destination = spec.callback(success=success)
        if not kind:
            return None
        queue = callback_queue(kind, destination)
        return cls(queue=queue, limit=callback_limit(queue, per_destination, own_limits), token=spec.token)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The end of the work on a leased task; the verdict decides the transition."""

    lease: Lease
    verdict: Verdict
    error: str = ""
    delay_s: float = 0.0
    """Seconds until the task is due again, with `RETRY`, `THROTTLED` and `RELEASE`."""
    outcome: Outcome | None = None
    """The result of a download's attempt; `None` for a callback, and for a download without an attempt."""
    callback: CallbackPlan | None = None
    """For a download, the callback that becomes pending; for a callback, the callback that has ended."""
    keep_s: float = 0.0
    """Seconds for which a job is kept after the callback, or after the download if there is no callback."""
    slow: bool = False
    """Whether the destination of a callback took long."""

    @classmethod
    def of(
        cls,
        lease: Lease,
        end: Outcome | CallbackOutcome,
        *,
        callback: CallbackPlan | None = None,
        keep_s: float = 0.0,
    ) -> Self:
        """The settlement of a lease after an attempt at a download or a callback."""
        return cls(
            lease=lease,
            verdict=end.verdict,
            error=end.error,
            delay_s=end.retry_after_s or 0.0,
            outcome=end if isinstance(end, Outcome) else None,
            callback=callback,
            keep_s=keep_s,
            slow=isinstance(end, CallbackOutcome) and end.slow,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reapable:
    """A job with a file and a record that are due to be deleted."""

    spec: JobSpec
    has_file: bool
    """Whether a file may be stored, in the service's storage or in the job's bucket."""
    digests: Sequence[str] = ()
    """SHA-256 of the shared files that the job may have stored, see `JobStore.share_file`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapBatch:
    """The store's answer to `reap`."""

    jobs: Sequence[Reapable]
    groups: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Groups of jobs, by shard, that `tend_groups` is to look at."""
    next_due_s: float | None
    """Seconds until the next job is due; `None` for no further job."""


# Results of queries

COUNTED_FAILURES = 500
"""Failed callbacks that a `Backlog` counts by destination: less than a millisecond of the store's time."""

SUMMED_QUEUES = 1000
"""Queues that a `Backlog` sums up: a few tenths of a millisecond of the store's time."""


POINT_MS = 300_000
"""Time between two points of the backlog's history."""

POINTS = 288
"""Points of the backlog's history: a day."""


AUDITED = 1000
"""Changes of jobs, and other changes, that are kept; an entry usually takes 300 bytes."""

FLEET_ACTIONS = ("adjust", "pause_all")
"""The changes of pauses and limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job as in `GET /jobs/<id>`."""

    spec: JobSpec
    download: Task
    outcome: Outcome | None
    """The last attempt's outcome; `None` before the end of the first attempt."""
    callback: Task | None
    """`None` before the end of the download, and for a job without a callback."""
    kept_until: datetime | None
    """When file and record are deleted; `None` before the end of download and callback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Present work of the fleet: the busiest aggregations, and totals."""

    aggregations: Sequence[AggregationLoad]
    """In descending order of pending and running downloads."""
    paused: bool = False
    """An operator has paused all aggregations."""
    total: int
    """Number of all aggregations with work, listed or not."""
    downloads: int
    """Downloads in flight."""
    callbacks: int
    """Callbacks in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Waiting tasks of a kind."""

    pending: int
    """Tasks of all queues, or of the `SUMMED_QUEUES` largest queues if there are more."""
    queues: int
    """Aggregations or destinations with pending or running tasks."""
    next_ms: int | None
    """Unix time at which the next task that waits for a time is due; `None`: no task waits for a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """Waiting tasks of all shards."""

    now_ms: int = field(compare=False)
    """The store's time."""
    downloads: Waiting
    oldest_due_ms: int | None = None
    """Unix time at which the oldest download that waits only for a slot became due, among the aggregations
    with the most downloads. Downloads in a pause or cooldown do not count. `None`: none waits."""
    callbacks: Waiting
    failed_callbacks: int
    """Failed callbacks that are still stored and can be sent again."""
    destinations: Sequence[WaitingDestination]
    """The destinations with the most callbacks pending or in flight, in descending order."""
    failed_to: Sequence[FailedDestination]
    """The destinations with the most failed callbacks, in descending order; counted over `COUNTED_FAILURES`
    callbacks per shard."""
    job_groups: int = 0
    """Number of groups of jobs; in a Cluster, of the shard with the most."""
    sealed_groups: int = 0
    """Number of these groups that are sealed and not complete."""


class Listed(StrEnum):
    """Lists of jobs that the store can read page by page; lists of finished jobs begin with the newest."""

    FINISHED = "finished"
    """Download and callback, if any, have ended. Ordered by the time of deletion."""
    FAILED_CALLBACKS = "failed callbacks"
    """Like `FINISHED`, and the callback failed. May contain a job with a callback that was retried
    meanwhile."""
    FAILED_DOWNLOADS = "failed downloads"
    """The download failed; the callback may still run. Ordered by the time of failure."""
    RUNNING = "running"
    """The download runs. Ordered by the end of the lease, so a job with a renewed lease may come twice."""
    GROUP = "group"
    """Unfinished jobs of a group of jobs. Ordered by the time of submission."""
    PENDING = "pending"
    """The download waits. Ordered by the due time; only for a single aggregation."""
