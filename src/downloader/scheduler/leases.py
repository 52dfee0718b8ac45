"""Leases that this process holds: until when each is valid here, and the task that renews them.

Besides, the task that hands back what dead instances held.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Sequence

import trio

from downloader.config import RENEWALS_PER_LEASE
from downloader.model import Kind, Lease
from downloader.observe import Event, get_logger
from downloader.store import JobStore, Settled, Settlement, StoreUnavailable

log = get_logger()

MARGIN = 0.1
"""Last part of a lease in which its holder no longer works: unwinding and publishing take time."""

MAX_MARGIN_S = 2.0

RENEW_BATCH = 500
"""Leases per call, so that a script takes 2 ms."""

RETRIES_PER_LEASE = 10
"""How often renewing is tried while the store does not answer."""

HUNG_S = 30.0
"""How long a lease is renewed after its work should have ended. Then the work hangs in a thread, and another
instance gets the task."""

SUSPECT_CRASHES = 2
"""A task under which so many workers died runs with no other such task in its instance: see `lease.lua`."""

SWEEPS_PER_LEASE = 10

SWEEP_BATCH = 100
"""Tasks per call and shard at most, so that a script takes a few milliseconds."""

Held = dict["HeldLease", None]
"""The leases of one kind that a process holds, the oldest first."""

Clock = Callable[[], float]
"""Seconds since a fixed moment, the same in all threads; goes on during a suspend where possible."""


def boottime() -> float:
    """Seconds since the host started. Where there is `CLOCK_BOOTTIME`, the time of suspends is included.

    On Linux `time.monotonic` stops during a suspend, while the store's clock goes on.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class HeldLease:
    """A lease, and the cancel scopes of its work.

    `scope`, the outer one, contains the work and its settling; it is cancelled when the lease ends. `work`,
    the inner one, contains the work alone; when it is cancelled, the lease is handed back.
    """

    __slots__ = (
        "_clock",
        "_ends_at",
        "_over",
        "_renewed_until",
        "lease",
        "scope",
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
        """A lease that lasts as `prolong` says.

        Args:
            lease: the lease.
            asked_at: the clock's time before it was asked for.
            lease_s: how long it lasts.
            longest_s: how long its work may take.
            clock: by which it ends.
            work_until: the Trio time at which the work is cancelled.
        """
        self.lease = lease
        self.scope = trio.CancelScope()
        self.work = trio.CancelScope(deadline=work_until)
        self.started_at = trio.current_time()
        self.settlement: Settlement | None = None
        """How its work ended; `None` while it goes on, and if it was cut off."""
        self.unanswered = False
        """Whether the store has not answered the last call to renew it."""
        self._clock = clock
        self._ends_at = 0.0
        self._over = False
        self._renewed_until = asked_at + longest_s + HUNG_S
        self.prolong(asked_at, lease_s)

    @property
    def hangs(self) -> bool:
        """Whether the work should have ended long ago, so that the lease is no longer renewed."""
        return self._clock() > self._renewed_until

    @property
    def suspect(self) -> bool:
        """Whether the task may be what makes workers die."""
        return self.lease.crashes >= SUSPECT_CRASHES

    def prolong(self, asked_at: float, lease_s: float) -> None:
        """The lease is valid until a margin before `asked_at + lease_s`.

        `asked_at` is the clock's time before the request was sent. The store counts from a later moment, so
        the lease ends here before it ends there.
        """
        if self._over:
            return
        self._ends_at = asked_at + lease_s - min(lease_s * MARGIN, MAX_MARGIN_S)
        self.scope.deadline = trio.current_time() + self._ends_at - self._clock()

    def lose(self) -> None:
        """Another instance has the task: cancel the work and its settling."""
        self._over = True
        self._ends_at = 0.0
        self.scope.cancel()

    def revoke(self) -> None:
        """Cancel the work, because a client has cancelled the job; nothing is published from now on.

        The lease is still settled, because that frees the slot.
        """
        self._over = True
        self._ends_at = 0.0
        self.work.cancel()

    def still_ours(self) -> bool:
        """Whether the lease is valid now, so that the result may be published. Thread-safe.

        It reads the clock, so it is right also after the process was frozen or the host suspended.
        """
        return self._clock() < self._ends_at


def revoke(held: Collection[HeldLease], job_id: str) -> None:
    """Cancel the work on a job that a client has cancelled, if one of these leases is for it."""
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
    """Renew all leases in `held` (a live view); those that the store refuses are lost. Runs until cancelled.

    A lease whose work hangs is left to end. If the store does not answer for some of them, it tries again
    sooner. A lease that is not renewed ends at its deadline.
    """
    while True:
        await trio.sleep(lease_s / RENEWALS_PER_LEASE)
        unknown = await _renew(store, kind, owner, list(held), lease_s, clock=clock)
        while unknown:
            log.warning(Event.LEASE_NOT_RENEWED, kind=kind, count=len(unknown))
            await trio.sleep(lease_s / RETRIES_PER_LEASE)
            # All of them, because meanwhile the others may need a renewal too.
            unknown = await _renew(store, kind, owner, list(held), lease_s, clock=clock)


async def _renew(
    store: JobStore, kind: Kind, owner: str, held: Sequence[HeldLease], lease_s: float, *, clock: Clock
) -> Sequence[HeldLease]:
    """Renew once; returns those for which the store did not answer."""
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
    async with (
        trio.open_nursery() as nursery
    ):  # side by side, as each call may take as long as the store's bound
        for start in range(0, len(alive), RENEW_BATCH):
            nursery.start_soon(renew, alive[start : start + RENEW_BATCH])
    return unknown


async def sweep_leases(store: JobStore, kind: Kind, lease_s: float, on_sweep: Callable[[int], None]) -> None:
    """Make the tasks pending again whose lease has ended, as their holder has died. Runs until cancelled.

    A sweep goes on until there are no more, as one process may have held thousands. `on_sweep` is called
    with the number of tasks of each call to the store.
    """
    job_ids: Sequence[str] = ()
    while True:
        if len(job_ids) < SWEEP_BATCH:
            # Jitter keeps a fleet that was started at once from sweeping at once.
            await trio.sleep(lease_s / SWEEPS_PER_LEASE * random.uniform(0.5, 1))  # noqa: S311  # no secret
        job_ids = ()
        try:
            job_ids = await store.sweep(kind, SWEEP_BATCH, lease_s)
        except StoreUnavailable as error:
            log.warning(Event.STORE_UNAVAILABLE, kind=kind, reason=str(error))
            continue
        for job_id in job_ids:
            log.warning(Event.SWEEP_RECOVERED, kind=kind, job_id=job_id)
        on_sweep(len(job_ids))
