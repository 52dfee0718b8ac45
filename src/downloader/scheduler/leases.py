"""Leases that this process holds: how long it may count on each, and the task that renews them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import trio

from downloader.config import RENEWALS_PER_LEASE
from downloader.model import Kind, Lease
from downloader.observe import Event, get_logger
from downloader.store import JobStore, Settled

log = get_logger()

MARGIN = 0.1
"""Part of a lease at its end in which its holder does not count on it: unwinding and publishing take time."""

MAX_MARGIN_S = 2.0

RENEW_BATCH = 500

RETRIES_PER_LEASE = 10
"""How often renewing is tried while the store does not answer."""

Held = dict["HeldLease", None]
"""What a process holds of one kind, the oldest first."""

Clock = Callable[[], float]
"""Seconds since some moment, the same for all threads; never stands still."""


def boottime() -> float:
    """Seconds since the host started, those that it was suspended included, where the system tells.

    `time.monotonic` stands still during a suspend on Linux, while the store's clock goes on.
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class HeldLease:
    """A lease and the scopes of what is done under it.

    `scope` is the outer one: all that is done under the lease, settling included; it ends with the lease.
    `work` is the inner one: the work alone; when it is cancelled, the lease is handed back.
    """

    __slots__ = ("_clock", "_ends_at", "abandoned", "lease", "scope", "started_at", "work", "worked")

    def __init__(self, lease: Lease, *, asked_at: float, lease_s: float, clock: Clock) -> None:
        self.lease = lease
        self.scope = trio.CancelScope()
        self.work = trio.CancelScope()
        self.started_at = trio.current_time()
        self.worked = False
        """Whether its work has ended."""
        self.abandoned = False
        """Whether it was handed back without its work, which hangs."""
        self._clock = clock
        self._ends_at = 0.0
        self.prolong(asked_at, lease_s)

    def prolong(self, asked_at: float, lease_s: float) -> None:
        """Count on the lease until shortly before `lease_s` seconds after `asked_at` have passed.

        Args:
            asked_at: by the clock, when the request was about to be sent. The store counts from when it
                answers, which is later, so the lease ends here before it ends there.
            lease_s: what the store was asked for.
        """
        self._ends_at = asked_at + lease_s - min(lease_s * MARGIN, MAX_MARGIN_S)
        self.scope.deadline = trio.current_time() + self._ends_at - self._clock()

    def lose(self) -> None:
        """Another instance has it: stop all that is done under it."""
        self._ends_at = 0.0
        self.scope.cancel()

    def still_ours(self) -> bool:
        """Whether what is done may still be published; may be asked from any thread.

        A process that was frozen, or whose host was suspended, sees the clock before it does anything else.
        """
        return self._clock() < self._ends_at


async def keep_leases(
    store: JobStore,
    kind: Kind,
    owner: str,
    held: Collection[HeldLease],
    lease_s: float,
    *,
    clock: Clock,
) -> None:
    """Renew all leases in `held` (a live view) in time, and lose those that are lost. Until cancelled.

    While the store does not answer for some of them, it tries again sooner; what has not been renewed ends
    with its own deadline.
    """
    while True:
        await trio.sleep(lease_s / RENEWALS_PER_LEASE)
        unknown = await _renew(store, kind, owner, list(held), lease_s, clock=clock)
        while unknown:
            log.warning(Event.LEASE_NOT_RENEWED, kind=kind, count=len(unknown))
            await trio.sleep(lease_s / RETRIES_PER_LEASE)
            # All of them again, as meanwhile the time of the others may have come too.
            unknown = await _renew(store, kind, owner, list(held), lease_s, clock=clock)


async def _renew(
    store: JobStore, kind: Kind, owner: str, held: Sequence[HeldLease], lease_s: float, *, clock: Clock
) -> Sequence[HeldLease]:
    """Renew once; answers those for which the store did not answer."""
    unknown: list[HeldLease] = []
    for start in range(0, len(held), RENEW_BATCH):
        chunk = held[start : start + RENEW_BATCH]
        asked_at = clock()
        answers = await store.renew(kind, owner, [each.lease for each in chunk], lease_s)
        for each, answer in zip(chunk, answers, strict=True):
            if answer is Settled.DONE:
                each.prolong(asked_at, lease_s)
            elif answer is Settled.LEASE_LOST:
                each.lose()
            else:
                unknown.append(each)
    return unknown
