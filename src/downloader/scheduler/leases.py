"""Leases of this process, the task that renews leases, and the task that ends leases of dead instances."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import trio

from downloader.backoff import jittered
from downloader.config import RENEWALS_PER_LEASE
from downloader.model import Kind, Lease
from downloader.observe import Event, get_logger
from downloader.store import JobStore, Settled, Settlement, StoreUnavailable

log = get_logger()

MARGIN = 0.1
"""Last part of a lease, in which the holder no longer works: unwinding and publishing take time."""

MAX_MARGIN_S = 2.0

RENEW_BATCH = 500
"""Leases per call, so that a call of the script takes 2 ms."""

RETRIES_PER_LEASE = 10
"""Tries to renew in the time of a lease, while the store does not answer."""

HUNG_S = 30.0
"""A lease is renewed for this time after the longest time of the work. Then the work counts as hung in a
thread, and another instance gets the task."""

SUSPECT_CRASHES = 2
"""After the death of this many workers during a task, the task is a suspect. An instance runs one suspect at
a time; see `lease.lua`."""

SWEEPS_PER_LEASE = 10

SWEEP_BATCH = 100
"""Most tasks per call and shard, so that a call of the script takes a few milliseconds."""

Held = dict["HeldLease", None]
"""The leases of one kind that a process holds, the oldest first."""

Clock = Callable[[], float]
"""Seconds since a fixed moment, the same in all threads; also runs during a suspend where possible."""


def boottime() -> float:
    """Seconds since the start of the host, including suspends where `CLOCK_BOOTTIME` exists.

    On Linux `time.monotonic` stops during a suspend, while the store's clock goes on.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


ROUNDING_S = 1e-6
"""The work is cancelled so much after the end of the lease, as times of Trio's clock and of `Clock` are
rounded apart."""


class HeldLease:
    """A lease, with the cancel scope of the work.

    The work is cancelled at the end of the lease, or earlier, to hand the lease back.
    """

    __slots__ = (
        "_clock",
        "_ends_at",
        "_renewed_until",
        "_revoked",
        "_work_until",
        "lease",
        "settlement",
        "started_at",
        "unanswered",
        "work",
    )

    def __init__(
        self,
        lease: Lease,
        *,
        asked_at: float,
        lease_s: float,
        longest_s: float,
        clock: Clock,
        work_until: float,
    ) -> None:
        """Begin a lease, with the end as in `prolong`.

        Args:
            lease: the lease.
            asked_at: the clock's time before the request was sent.
            lease_s: length of the lease.
            longest_s: how long the work may take.
            clock: decides when the lease ends.
            work_until: Trio time at which the work is cancelled.
        """
        self.lease = lease
        self._clock = clock
        self._ends_at = _end_of(asked_at, lease_s)
        self._work_until = work_until
        self.work = trio.CancelScope(deadline=self._deadline())
        self.started_at = trio.current_time()
        self.settlement: Settlement | None = None
        """The result of the work; `None` before the end of the work, and if the lease ended first."""
        self.unanswered = False
        """Whether the last call to renew the lease got no answer."""
        self._revoked = False
        self._renewed_until = asked_at + longest_s + HUNG_S

    @property
    def hangs(self) -> bool:
        """Whether the work has taken too long, so that the lease is no longer renewed."""
        return self._clock() > self._renewed_until

    @property
    def ended(self) -> bool:
        """Whether the lease has ended, so that the store would refuse a settlement."""
        return self._clock() >= self._ends_at

    @property
    def suspect(self) -> bool:
        """Whether the task may be the cause of the death of workers."""
        return self.lease.crashes >= SUSPECT_CRASHES

    def prolong(self, asked_at: float, lease_s: float) -> None:
        """Let the lease end a margin before `asked_at + lease_s`.

        `asked_at` is the clock's time before the request was sent. The store counts from a later moment, so
        the lease ends in this process before it ends in the store.
        """
        if self._ends_at:
            self._ends_at = _end_of(asked_at, lease_s)
            self.work.deadline = self._deadline()

    def stop(self, at: float) -> None:
        """Let the work end by this Trio time."""
        self._work_until = at
        self.work.deadline = self._deadline()

    def lose(self) -> None:
        """Cancel the work and settle nothing, because another instance has the task."""
        self._ends_at = 0.0
        self.work.cancel()

    def revoke(self) -> None:
        """Cancel the work, because a client has cancelled the job; from now on nothing is published.

        The lease is still settled, which frees the slot.
        """
        self._revoked = True
        self.work.cancel()

    def still_ours(self) -> bool:
        """Whether the lease is valid now, so that the result may be published. Thread-safe.

        The clock is read, so the result is also right after the process was frozen or the host suspended.
        """
        return not self._revoked and not self.ended

    def _deadline(self) -> float:
        """The latest end of the work as Trio time."""
        ends_at = trio.current_time() + self._ends_at - self._clock() + ROUNDING_S
        return min(ends_at, self._work_until)


def _end_of(asked_at: float, lease_s: float) -> float:
    return asked_at + lease_s - min(lease_s * MARGIN, MAX_MARGIN_S)


def revoke(held: Collection[HeldLease], job_id: str) -> None:
    """Cancel the work on a job that a client has cancelled, if a lease in `held` is for the job."""
    for entry in held:
        if entry.lease.id == job_id:
            entry.revoke()


async def keep_leases(
    store: JobStore,
    kind: Kind,
    owner: str,
    held: Collection[HeldLease],
    lease_s: float,
    *,
    clock: Clock,
) -> None:
    """Renew all leases in `held`, a live view, until cancelled. A lease that the store refuses is lost.

    A lease with hung work is not renewed. Without an answer of the store, the next try comes sooner. A lease
    that is not renewed ends at its deadline.
    """
    while True:
        await trio.sleep(lease_s / RENEWALS_PER_LEASE)
        unknown = await _renew(store, kind, owner, list(held), lease_s, clock=clock)
        while unknown:
            log.warning(Event.LEASE_NOT_RENEWED, kind=kind, count=len(unknown))
            await trio.sleep(lease_s / RETRIES_PER_LEASE)
            # All leases, because meanwhile the others may need a renewal too.
            unknown = await _renew(store, kind, owner, list(held), lease_s, clock=clock)


async def _renew(
    store: JobStore, kind: Kind, owner: str, held: Sequence[HeldLease], lease_s: float, *, clock: Clock
) -> Sequence[HeldLease]:
    """Renew leases once; returns the leases without an answer of the store."""
    unknown: list[HeldLease] = []

    async def renew(chunk: Sequence[HeldLease]) -> None:
        asked_at = clock()
        for entry in chunk:
            entry.unanswered = True
        answers = await store.renew(kind, owner, [entry.lease for entry in chunk], lease_s)
        for entry, answer in zip(chunk, answers, strict=True):
            entry.unanswered = answer is Settled.UNKNOWN
            match answer:
                case Settled.DONE:
                    entry.prolong(asked_at, lease_s)
                case Settled.LEASE_LOST:
                    entry.lose()
                case Settled.CANCELLED:
                    entry.revoke()
                case Settled.UNKNOWN:
                    unknown.append(entry)

    alive = [entry for entry in held if not entry.hangs]
    # Concurrent, because each call may take as long as the store's time limit.
    async with trio.open_nursery() as nursery:
        for start in range(0, len(alive), RENEW_BATCH):
            nursery.start_soon(renew, alive[start : start + RENEW_BATCH])
    return unknown


async def sweep_leases(store: JobStore, kind: Kind, lease_s: float, on_sweep: Callable[[int], None]) -> None:
    """Make tasks with an expired lease pending again, because the holder has died. Runs until cancelled.

    A sweep repeats the call until no such task is left, because a process may have held thousands. `on_sweep`
    is called with the number of tasks of each call.
    """
    job_ids: Sequence[str] = ()
    while True:
        if len(job_ids) < SWEEP_BATCH:
            # Jitter, so that instances that started together do not sweep together.
            await trio.sleep(jittered(lease_s / SWEEPS_PER_LEASE))
        job_ids = ()
        with suppress(StoreUnavailable):
            job_ids = await store.sweep(kind, SWEEP_BATCH, lease_s)
        for job_id in job_ids:
            log.warning(Event.SWEEP_RECOVERED, kind=kind, job_id=job_id)
        on_sweep(len(job_ids))
