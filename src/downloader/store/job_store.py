"""The interface of the store, `JobStore`, and the values that it takes and returns. Nothing here is Redis's.

Each method runs one atomic transition (`docs/state-machine.md`) in each shard that it concerns. It may be
repeated, and its time is bounded. A store has one shard; a Cluster has several. Unless a method says
otherwise it raises `StoreUnavailable` if none of these shards answers (the call may have been applied), and
`StoreRefused` if the store will never carry it out. If only some shards fail, the items of the others are
answered as usual.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol, Self

import trio

from downloader.model import (
    Delivery,
    JobSpec,
    Kind,
    Lease,
    Outcome,
    callback_group,
    callback_limit,
)
from downloader.store.views import (
    Aggregation,
    AggregationLoad,
    AggregationPage,
    AggregationSize,
    Backlog,
    JobPage,
    JobView,
    Listed,
    ListedJob,
    Load,
)


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


class RetryAnswer(StrEnum):
    """Answer to `POST /retry/<id>`."""

    DONE = "done"
    UNKNOWN = "unknown"
    CONFLICT = "conflict"
    """Not in a state to be retried."""


class CancelAnswer(StrEnum):
    """Answer to `DELETE /jobs/<id>`."""

    DONE = "done"
    """Its download is cancelled, now or by an earlier call."""
    UNKNOWN = "unknown"
    CONFLICT = "conflict"
    """Its download is over."""


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


class JobStore(Protocol):
    """The fleet's shared state."""

    def new_id(self, aggr_id: str) -> str:
        """A new id for a job of this aggregation; its last character gives the shard."""

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        """Enqueue jobs, each atomically, in one round trip per shard; answers `(result, job id)` in order.

        Raises:
            StoreUnavailable: no shard answered; the jobs may have been enqueued.
        """

    async def lease(
        self, kind: Kind, owner: str, count: int, lease_s: float, *, shares: Shares = ALL_SHARES
    ) -> LeaseBatch:
        """Give up to `count` due tasks to `owner`, fairly over groups, each for `lease_s` seconds.

        If the answer to a call is lost, the next call gives the same leases again. A `count` of 0 asks for
        these only.

        Raises:
            StoreUnavailable: no shard answered. A later call gives the leases that they may have granted.
        """

    async def waiting(self, kind: Kind, *, without: Sequence[str]) -> int:
        """How many groups, those in `without` excluded, have a due task and a free slot in the fleet."""

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
        """Tasks become pending again, due after the given seconds.

        The attempt counts, unless the verdict is `THROTTLED`. The outcome's cooldown, if any, begins.
        """

    async def release(
        self, kind: Kind, owner: str, results: Sequence[tuple[Lease, str, float]]
    ) -> Sequence[Settled]:
        """Like `retry_later`, for the given reason; the attempt does not count.

        If the last sweep took the task from this lease, the answer is `LEASE_LOST`, and the crash that the
        sweep counted is taken back, because the caller has not crashed.
        """

    async def close_callbacks(self, owner: str, results: Sequence[CloseResult]) -> Sequence[Settled]:
        """Callbacks reach `SUCCEEDED` or `FAILED`, and their jobs wait to be reaped."""

    async def set_crawl_delay(self, host: str, seconds: float, keep_s: float) -> None:
        """Let downloads from a host start at least this many seconds after each other, for the next `keep_s`.

        Instances whose store knows no limits of hosts do not obey it.
        """

    async def sweep(self, kind: Kind, count: int = 100) -> Sequence[str]:
        """Make at most `count` tasks per shard whose lease has ended pending again; answers their job ids."""

    async def reap(self, count: int, hold_s: float) -> ReapBatch:
        """At most `count` jobs per shard that are due to be deleted; no other call gets them for `hold_s`."""

    async def remove(self, job_ids: Sequence[str]) -> None:
        """Delete the records of jobs that `reap` has given; `reap` repeats those of a silent shard later."""

    async def retry(self, job_id: str, *, download: bool, limit: int) -> RetryAnswer:
        """Send a failed callback again, or (`download`) run a failed download again from the start.

        `limit`: `per_destination` of `callback_limit`, for a callback whose group has no record.
        """

    async def cancel(self, spec: JobSpec, plan: CallbackPlan | None, keep_s: float) -> CancelAnswer:
        """End a download that is pending or running, as `CANCELLED`; its callback becomes pending.

        The holder of a running one is told through `listen`, or when it renews. The slot stays occupied until
        the holder has stopped.

        Args:
            spec: of the job.
            plan: of the callback of failures; `None` if the job has none.
            keep_s: how many seconds a job without a callback is kept.
        """

    async def jobs(self, which: Listed, aggr_id: str, cursor: str, count: int) -> JobPage:
        """At most `count` jobs of a list after this cursor (empty: from the start).

        Those of other aggregations may be among them, unless the list is `PENDING`. An empty `aggr_id` stands
        for all.

        Raises:
            ValueError: the cursor does not come from such a call.
        """

    async def failures(self, count: int) -> Sequence[ListedJob]:
        """At most `count` of the jobs whose download or callback failed last, the newest first.

        Each shard knows 200 at the most.
        """

    async def get(self, job_id: str) -> JobView | None:
        """One job, or `None`."""

    async def aggregation_sizes(self) -> Sequence[AggregationSize]:
        """Aggregations that have work, largest backlog first."""

    async def aggregations(self, cursor: str, count: int) -> AggregationPage:
        """About `count` of the aggregations that have work, after this cursor (empty: from the start).

        All pages together contain each aggregation that has work during the whole listing, some twice.

        Raises:
            ValueError: the cursor does not come from an `AggregationPage`.
        """

    async def described(self, aggr_ids: Iterable[str]) -> Sequence[Aggregation]:
        """These aggregations, in any order; without those that have no work."""

    async def aggregation(self, aggr_id: str) -> Aggregation | None:
        """One aggregation, or `None` if it has no work."""

    async def adjust(self, aggr_id: str, changes: Mapping[str, float | bool | None]) -> Aggregation | None:
        """Change an aggregation over the fleet, at once; `None` if it has no work.

        What is in flight goes on. The changes are forgotten with the aggregation's last job.

        Args:
            aggr_id: the aggregation.
            changes: values for `limit`, `rate`, `delay` and `paused`; one that is absent stays, and `None`
                clears it, so that what the jobs ask for applies again.
        """

    async def load(self, count: int) -> Load:
        """What runs and waits now: at most `count` (1 or more) aggregations, the busiest.

        Its cost depends on `count` only. With several shards it is not one snapshot.
        """

    async def loads(self, most: int) -> Sequence[AggregationLoad]:
        """The aggregations that have work, of each shard the busiest if it has more than `most`.

        For operators who search: its cost grows with their number, in calls of a few milliseconds each.
        """

    async def backlog(self, destinations: int) -> Backlog:
        """What waits now, with at most this number (1 or more) of callback destinations.

        Its cost is bounded. With several shards it is not one snapshot.
        """

    async def report(
        self,
        instance: str,
        role: str,
        facts: Mapping[str, Any],
        ttl_s: float,
        counts: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Publish an instance's facts, which vanish after `ttl_s` seconds of silence.

        `counts` are the present values of its counters, by series. Their growth since the last report that
        the store answered is added to the totals of the role, once.
        """

    async def totals(self, role: str) -> Mapping[str, int]:
        """The counts of all instances of a role, also those that have ended, by series."""

    async def leave(self, instance: str, role: str) -> None:
        """Delete an instance's report."""

    async def reports(self, role: str) -> Sequence[Mapping[str, Any]]:
        """The facts of the live instances of a role."""

    async def ping(self) -> None:
        """Check that the store, or at least one of its shards, answers."""

    async def listen(
        self,
        wakes: Mapping[Kind, Callable[[], None]],
        *,
        cancelled: Callable[[str], None] = lambda _: None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call a kind's function whenever one of its groups may have become runnable; runs until cancelled.

        Calls it also after each (re)subscription, as messages may have been missed. Calls `cancelled` with
        the id of each job that is cancelled while its download runs anywhere. Messages can be lost, so
        callers also ask the store at intervals.
        """
