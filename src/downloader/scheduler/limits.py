"""Bounds of the work in flight in this process: a limiter per group, and a group's share of the slots.

While other aggregations wait, an aggregation gets at most half of the download slots. Callbacks to
destinations that have not answered quickly lately get together at most half of the callback slots, and those
among them that have failed a quarter.
`docs/design/scheduler.md` says where each bound is enforced.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence

import trio

from downloader.model import Kind
from downloader.scheduler.leases import HeldLease
from downloader.store import Shares

HOLD_S = 30.0
"""After a group had to hand back leases because other groups waited, the group gets no more than the group's
share for this time. Otherwise the next job of another group would end another download, and the origin would
have to send that file twice."""


class Limits:
    """The slots of a process, and the leases that occupy slots.

    The store grants no lease beyond a group's limit. The limiter here is for the case that a lease ends and
    is granted again before the former work has unwound.
    """

    def __init__(self, kind: Kind, slots: int) -> None:
        self._kind = kind
        self._slots = slots
        self._share = max(1, slots // 2)
        self._failing_share = max(1, slots // 4)
        self._limiters: MutableMapping[str, trio.CapacityLimiter] = {}
        self._large: dict[str, None] = {}
        self._capped_until: dict[str, float] = {}
        self._unproven = 0
        self._failing = 0
        self._suspects = 0

    def enter(self, held: HeldLease) -> bool:
        """Take a slot of the lease's group; false if the group has no free slot in this process."""
        lease = held.lease
        limiter = self._limiters.get(lease.group)
        if limiter is None:
            limiter = self._limiters[lease.group] = trio.CapacityLimiter(lease.limit)
        elif limiter.total_tokens != lease.limit:
            limiter.total_tokens = lease.limit
        try:
            limiter.acquire_on_behalf_of_nowait(held)
        except trio.WouldBlock:
            return False
        self._unproven += not lease.proven
        self._failing += lease.failing
        self._suspects += held.suspect
        if limiter.borrowed_tokens >= self._share:
            self._large[lease.group] = None
        return True

    @property
    def occupied(self) -> bool:
        """Whether any work is in flight."""
        return bool(self._limiters)

    def full(self, group: str) -> bool:
        """Whether a group has no free slot."""
        limiter = self._limiters[group]
        return limiter.borrowed_tokens >= limiter.total_tokens

    def leave(self, held: HeldLease) -> bool:
        """Release the slot; returns whether the bounds of shares have changed, so that more may be leased."""
        before = self._bounds()
        group = held.lease.group
        limiter = self._limiters[group]
        limiter.release_on_behalf_of(held)
        self._unproven -= not held.lease.proven
        self._failing -= held.lease.failing
        self._suspects -= held.suspect
        if limiter.borrowed_tokens < self._share:
            self._large.pop(group, None)
        if limiter.borrowed_tokens == 0:
            del self._limiters[group]
        return before != self._bounds()

    def _bounds(self) -> tuple[bool, bool, int, int]:
        unproven, failing = self._unproven >= self._share, self._failing >= self._failing_share
        return unproven, failing, len(self._large), self._suspects

    def shares(self, now: float) -> Shares:
        """Which leases the process may ask for; `now` is Trio time."""
        if self._kind is Kind.CALLBACK:
            return Shares(
                unproven=max(0, self._share - self._unproven),
                failing=max(0, self._failing_share - self._failing),
                suspects=self._suspects,
            )
        for group in [group for group, until in self._capped_until.items() if until <= now]:
            del self._capped_until[group]
        never = [group for group in self._large if group in self._capped_until]
        last = [group for group in self._large if group not in never]
        return Shares(last=last, never=never, suspects=self._suspects)

    def too_large(self) -> str | None:
        """An aggregation with more slots than the aggregation's share, if any."""
        if self._kind is Kind.CALLBACK:
            return None
        return next((group for group in self._large if self._beyond(group) > 0), None)

    def leases_beyond_share(
        self, group: str, others: int, held: Iterable[HeldLease], now: float
    ) -> Sequence[HeldLease]:
        """The leases that a group hands back because `others` groups wait: the newest, down to the share.

        A lease with cancelled work counts as handed back, even if the work takes long to end.
        """
        self._capped_until[group] = now + HOLD_S
        limiter = self._limiters.get(group)
        working = set(limiter.statistics().borrowers) if limiter else set()
        leases = [lease for lease in held if lease in working and not lease.work.cancel_called]
        count = min(others, len(leases) - self._share)
        return leases[len(leases) - count :] if count > 0 else []

    def _beyond(self, group: str) -> int:
        limiter = self._limiters.get(group)
        return limiter.borrowed_tokens - self._share if limiter else 0
