"""Leases in our hands: how long each is ours, and the task that prolongs them."""

from __future__ import annotations

import time
from collections.abc import Collection, MutableMapping

import trio

from downloader.config import RENEWALS_PER_LEASE
from downloader.model import Kind, Lease
from downloader.observe import Event, get_logger
from downloader.store import JobStore, StoreUnavailable

log = get_logger()

MARGIN = 0.1
"""Part of a lease at its end in which we no longer count on it: unwinding and publishing take time."""

MAX_MARGIN_S = 2.0

RENEW_BATCH = 500


class Tenure:
    """One lease in our hands. Its scope ends everything done under the lease when the lease ends."""

    __slots__ = ("_ends_at", "handed_back", "lease", "scope")

    def __init__(self, lease: Lease, *, taken_at: float, lease_s: float) -> None:
        self.lease = lease
        self.scope = trio.CancelScope()
        self.handed_back = False
        """Whether a stop has cut the work short while the lease was ours."""
        self._ends_at = 0.0
        self.prolong(taken_at, lease_s)

    def prolong(self, asked_at: float, lease_s: float) -> None:
        """The lease holds for `lease_s` seconds from `asked_at`, by `time.monotonic`.

        Counted from before the request was sent: the store's count began later, so ours ends earlier.
        """
        self._ends_at = asked_at + lease_s - min(lease_s * MARGIN, MAX_MARGIN_S)
        self.scope.deadline = trio.current_time() + self._ends_at - time.monotonic()

    def lose(self) -> None:
        """Another instance has it: stop working on it."""
        self._ends_at = 0.0
        self.scope.cancel()

    def hand_back(self) -> None:
        """End the work, not the lease: a new scope, with what is left of it, is for settling."""
        if not self.handed_back:
            self.handed_back = True
            self.scope.cancel()
            self.scope = trio.CancelScope(deadline=self.scope.deadline)

    def still_ours(self) -> bool:
        """Whether what we do may still be published; may be asked from any thread.

        A frozen process that wakes up sees the clock before it does anything else.
        """
        return time.monotonic() < self._ends_at


async def keep_leases(
    store: JobStore, kind: Kind, owner: str, tenures: Collection[Tenure], lease_s: float
) -> None:
    """Prolong all leases in `tenures` (a live view) in time, and lose those that are lost. Until cancelled.

    While the store does not answer, it tries again soon; leases that end meanwhile end their work by their
    own deadline.
    """
    interval_s = lease_s / RENEWALS_PER_LEASE
    while True:
        await trio.sleep(interval_s)
        held = list(tenures)
        interval_s = lease_s / RENEWALS_PER_LEASE
        for start in range(0, len(held), RENEW_BATCH):
            chunk = held[start : start + RENEW_BATCH]
            asked_at = time.monotonic()
            try:
                lost = await store.renew(kind, owner, [tenure.lease for tenure in chunk], lease_s)
            except StoreUnavailable as error:
                log.warning(Event.LEASE_NOT_RENEWED, kind=kind, count=len(chunk), reason=str(error))
                interval_s = lease_s / 10
                break
            _apply(chunk, {lease.id for lease in lost}, asked_at, lease_s)


def _apply(chunk: Collection[Tenure], lost: Collection[str], asked_at: float, lease_s: float) -> None:
    for tenure in chunk:
        if tenure.lease.id in lost:
            tenure.lose()
        else:
            tenure.prolong(asked_at, lease_s)


class GroupLimiters:
    """A `trio.CapacityLimiter` per group: this process's own guard of the limit; idle ones are dropped.

    The store grants no lease beyond the limit. This holds even when a lease that ended here is granted
    anew before its old work has unwound.
    """

    def __init__(self) -> None:
        self._limiters: MutableMapping[str, trio.CapacityLimiter] = {}

    def __len__(self) -> int:
        return len(self._limiters)

    def enter(self, tenure: Tenure) -> bool:
        """Take a slot of the lease's group; false if this process has none free."""
        lease = tenure.lease
        limiter = self._limiters.get(lease.group)
        if limiter is None:
            limiter = self._limiters[lease.group] = trio.CapacityLimiter(lease.limit)
        elif limiter.total_tokens != lease.limit:
            limiter.total_tokens = lease.limit
        try:
            limiter.acquire_on_behalf_of_nowait(tenure)
        except trio.WouldBlock:
            return False
        return True

    def leave(self, tenure: Tenure) -> None:
        """Give the slot back."""
        group = tenure.lease.group
        limiter = self._limiters[group]
        limiter.release_on_behalf_of(tenure)
        if limiter.borrowed_tokens == 0:
            del self._limiters[group]
