"""The values that `JobStore` takes and returns, besides those of `model` and `views`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from downloader.model import Delivery, JobSpec, Lease, Outcome, callback_group, callback_limit


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
    """What became of a holder's call for a task that it has leased."""

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


FinishResult = tuple[Lease, Outcome, CallbackPlan | None, float]
"""A download's lease, its outcome, its callback, and the seconds that a job without callback is kept."""

CloseResult = tuple[Lease, Delivery, float, int]
"""A callback's lease, its end, the seconds that its job is kept, and the group's limit after a success."""
