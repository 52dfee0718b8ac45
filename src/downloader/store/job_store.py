"""What the rest of the service knows of the store: `JobStore`, its answers, and nothing of Redis.

Every method is one atomic transition (`docs/state-machine.md`) in each shard that it concerns, safe to
repeat, and bounded in time. A store has one shard, or several where it is a Cluster. Unless a method says
otherwise it raises `StoreUnavailable` when no shard that it concerns can take the call now (it may have been
applied), and `StoreRefused` when the store never will. What a single one of several shards cannot take
concerns its own items only: the others are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import trio

from downloader.model import Delivery, JobSpec, Kind, Lease, Outcome, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job on its way into the store."""

    spec: JobSpec
    """With an id from `JobStore.new_id`."""
    idempotency_key: str = ""
    """Digest of the client's `Idempotency-Key` (and of who it is); empty when it sent none."""
    body_digest: str = ""
    """Digest of the request body, compared when the key is known."""
    permits: Callable[[str], bool] | None = None
    """Whether the job may go through this proxy, should its aggregation have it already; `None`: any."""


class Accepted(StrEnum):
    """Why a submission was answered as it was."""

    NEW = "new"
    REPEATED = "repeated"
    """The idempotency key is known with the same body; the answer has the first job's id."""
    CONFLICT = "conflict"
    """The idempotency key is known with another body; nothing was enqueued."""
    PROXIED = "proxied"
    """Its aggregation has a proxy that it may not use; nothing was enqueued."""
    UNAVAILABLE = "unavailable"
    """Its shard cannot take it now, or did not answer; then it may have been enqueued."""


class Settled(StrEnum):
    """What became of a holder's call for a task that it has leased."""

    DONE = "done"
    """Applied; also when this very call had been applied before."""
    LEASE_LOST = "lease_lost"
    """Another generation holds or has finished the task; nothing was changed."""
    UNKNOWN = "unknown"
    """Its shard did not answer: it may have been applied. To be asked again."""


class RetryAnswer(StrEnum):
    """Answer to `POST /retry/<id>`."""

    DONE = "done"
    UNKNOWN = "unknown"
    CONFLICT = "conflict"
    """Not in a state to be retried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Which tasks a lease call may give to an instance, given what it has in flight."""

    last: Sequence[str] = ()
    """Groups that give tasks only if no other group can."""
    never: Sequence[str] = ()
    """Groups that give none."""
    unproven: int = 1_000_000
    """How many callbacks at the most may go to destinations that have not answered lately."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseBatch:
    """Answer to one lease call."""

    leases: Sequence[Lease]
    next_due_s: float | None
    """Seconds until something more can run (0: at once, the batch was full), `None`: nothing known."""


ALL_SHARES = Shares()
"""Any task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackPlan:
    """The callback of a finished download."""

    group: str
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reapable:
    """A job whose file and record are due to be deleted."""

    spec: JobSpec
    has_file: bool
    """Whether one may have been stored, in our own storage or in the caller's bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskView:
    """A task as `GET /jobs/<id>` shows it."""

    state: State | str
    """A text where a newer version has stored a state that this one does not know."""
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
    """Everything about one job that people may see."""

    spec: JobSpec
    download: TaskView
    outcome: Outcome | None
    """Of the last attempt; `None` before the first has ended."""
    callback: TaskView | None
    """`None` while there is none (download not finished, or the job wants none)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationSize:
    """An aggregation and how many of its jobs wait."""

    aggr_id: str
    pending: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationLoad:
    """What an aggregation is doing."""

    aggr_id: str
    pending: int
    in_flight: int
    """Downloads leased now, over the fleet."""
    limit: int
    paused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the fleet is doing: the busiest aggregations, and how much there is in all."""

    aggregations: Sequence[AggregationLoad]
    """By number of pending and running downloads, the most first."""
    total: int
    """Aggregations with work, those left out included."""
    downloads: int
    """In flight, of all aggregations."""
    callbacks: int
    """In flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReapBatch:
    """Answer to one reap call."""

    jobs: Sequence[Reapable]
    next_due_s: float | None
    """Seconds until the next job is due; `None`: none waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedCallback:
    """A job whose callback has failed."""

    job_id: str
    aggr_id: str
    failed_ms: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedPage:
    """Answer to one call for failed callbacks."""

    jobs: Sequence[FailedCallback]
    cursor: str
    """For the call for those behind; empty when there are none."""


FinishResult = tuple[Lease, Outcome, CallbackPlan | None, float]
"""A finished download, where its callback goes, and for how many seconds it is kept if it has none."""

CloseResult = tuple[Lease, Delivery, float, int]
"""A closed callback, for how many seconds its job is kept, and the limit of a destination that works."""


class JobStore(Protocol):
    """The fleet's shared state."""

    def new_id(self, aggr_id: str) -> str:
        """A fresh job id for a job of this aggregation (its last character tells the shard)."""

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        """Take jobs in, each atomically, in one round trip per shard; answers `(why, job id)` in order.

        Raises:
            StoreUnavailable: none of them could be taken, or they were and the answer was lost.
        """

    async def lease(
        self, kind: Kind, owner: str, count: int, lease_s: float, *, shares: Shares = ALL_SHARES
    ) -> LeaseBatch:
        """Give up to `count` due tasks to `owner`, fairly over groups, each for `lease_s` seconds.

        Leases whose answer was lost are given again by the next call. A `count` of 0 asks for those alone.

        Raises:
            StoreUnavailable: no shard answered; a later call with a `count` of 0 tells what they have given.
        """

    async def waiting(self, kind: Kind, *, without: Sequence[str]) -> int:
        """How many groups other than these have a due task and a free slot in the fleet."""

    async def renew(
        self, kind: Kind, owner: str, leases: Sequence[Lease], lease_s: float
    ) -> Sequence[Settled]:
        """Prolong leases to `lease_s` seconds from now; answers in order. Raises `StoreRefused` only."""

    async def finish(self, owner: str, results: Sequence[FinishResult]) -> Sequence[Settled]:
        """Downloads reach their terminal state, and their callbacks, if any, become pending.

        Like all that settle, it answers in order, and raises `StoreRefused` only.
        """

    async def retry_later(
        self, kind: Kind, owner: str, results: Sequence[tuple[Lease, Outcome | Delivery, float]]
    ) -> Sequence[Settled]:
        """Tasks go back to wait the given seconds; the attempt counts."""

    async def release(
        self, kind: Kind, owner: str, results: Sequence[tuple[Lease, str, float]]
    ) -> Sequence[Settled]:
        """Tasks are handed back to wait the given seconds, with a reason; the attempt does not count."""

    async def close_callbacks(self, owner: str, results: Sequence[CloseResult]) -> Sequence[Settled]:
        """Callbacks reach `SUCCEEDED` or `FAILED`, and their jobs wait to be reaped."""

    async def sweep(self, kind: Kind, count: int = 100) -> Sequence[str]:
        """Hand back at most `count` tasks per shard whose lease has ended; answers their job ids."""

    async def reap(self, count: int, hold_s: float) -> ReapBatch:
        """At most `count` jobs per shard that are due to be deleted; no other call gets them for `hold_s`."""

    async def remove(self, job_ids: Sequence[str]) -> None:
        """Forget jobs that `reap` has given; those whose shard does not answer are given again later."""

    async def retry(self, job_id: str, *, download: bool, limit: int) -> RetryAnswer:
        """Send a failed callback again, or (`download`) run a failed download again from the start.

        `limit`: of the callback's group, should it have no record.
        """

    async def failed_callbacks(self, cursor: str, count: int) -> FailedPage:
        """The failed callbacks among at most `count` finished jobs behind this cursor (empty: none).

        Raises:
            ValueError: the cursor is none that `FailedPage` had.
        """

    async def get(self, job_id: str) -> JobView | None:
        """One job, or `None`."""

    async def aggregation_sizes(self) -> Sequence[AggregationSize]:
        """Aggregations that have work, largest backlog first."""

    async def load(self, count: int) -> Load:
        """What runs and waits now: at most `count` (1 or more) aggregations, the busiest.

        Its cost grows with `count` alone. Several shards are not asked at the same moment.
        """

    async def report(self, instance: str, role: str, facts: Mapping[str, Any], ttl_s: float) -> None:
        """Publish an instance's facts and counters; they vanish after `ttl_s` seconds of silence."""

    async def leave(self, instance: str, role: str) -> None:
        """Withdraw an instance's report at once."""

    async def reports(self, role: str) -> Sequence[Mapping[str, Any]]:
        """The facts of the live instances of a role."""

    async def ping(self) -> None:
        """Check that the store, or at least one of its shards, answers."""

    async def listen(
        self,
        wakes: Mapping[Kind, Callable[[], None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call a kind's function whenever one of its groups may have become runnable; runs until cancelled.

        Also once on every (re)subscription. Lossy on purpose: whoever relies on it also looks once in a
        while by itself.
        """
