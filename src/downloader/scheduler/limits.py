"""Bounds of the work in flight in this process: the limit of a queue, and a queue's share of the slots.

While others wait, an aggregation gets at most half of the download slots, and a token at most half of the
download slots and of the callback slots. Callbacks to destinations that have not answered quickly lately get
together at most half of the callback slots, and those among them that have failed a quarter.
`docs/design/scheduler.md` says where each bound is enforced.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

from downloader.model import Kind, Lease, Verdict
from downloader.scheduler.leases import HeldLease
from downloader.store import Settlement, Shares, TokenShare

HOLD_S = 30.0
"""After a queue had to hand back leases because other queues waited, the queue stays capped at its share for
this time. Otherwise each further job of another queue would interrupt another download, and the origin would
have to send that file twice."""

MOST_RESTING = 64
"""Most callback destinations that rest. Each lease call names all of them."""

Holder = tuple[Literal["queue", "token"], str]
"""An aggregation, or a token with all its queues."""


class Limits:
    """The slots of a process, and the leases that occupy slots.

    The store grants no lease beyond a queue's limit. The limit is checked again here for the case that a
    lease ends and is granted again before the former work has unwound.
    """

    def __init__(self, kind: Kind, slots: int) -> None:
        self._kind = kind
        self._slots = slots
        self._share = max(1, slots // 2)
        self._failing_share = max(1, slots // 4)
        self._working: dict[str, set[HeldLease]] = {}
        """By queue, without empty sets."""
        self._held: dict[str, Counter[str]] = {"queue": Counter(), "token": Counter()}
        """Leases by holder, without zeros. Each lease call asks for all tokens, so they are kept apart."""
        self._large: dict[Holder, None] = {}
        self._capped_until: dict[Holder, float] = {}
        self._unproven = Counter[str]()
        """By token; `_all_unproven` is the sum."""
        self._all_unproven = 0
        self._failing = 0
        self._suspects = 0
        self._resting: dict[str, float] = {}
        """Destinations for which this process leases no callbacks, and until when (Trio time)."""

    def enter(self, held: HeldLease) -> bool:
        """Take a slot of the lease's queue; false if the queue has no free slot in this process."""
        if held.lease.queue not in self._working:
            self._working[held.lease.queue] = {held}
        elif self.full(held):
            return False
        else:
            self._working[held.lease.queue].add(held)
        self._count(held, 1)
        return True

    def full(self, held: HeldLease) -> bool:
        """Whether the lease's queue has no free slot."""
        return len(self._working[held.lease.queue]) >= held.lease.limit

    def leave(self, held: HeldLease) -> bool:
        """Release the slot; returns whether the bounds of shares have changed, so that more may be leased."""
        before = self._bounds(held.lease.token)
        queue = held.lease.queue
        self._working[queue].remove(held)
        if not self._working[queue]:
            del self._working[queue]
        self._count(held, -1)
        return before != self._bounds(held.lease.token)

    def note_result(self, settlement: Settlement, now: float) -> bool:
        """Let a destination rest if a callback is handed back with a delay, for example for an open circuit.

        The other callbacks to the destination would be handed back too. Any other result comes from a backend
        that works again, and ends the rest of all destinations of the backend; returns whether one rested. A
        sealed callback says nothing about the backend.
        """
        lease = settlement.lease
        if self._kind is Kind.DOWNLOAD or lease.spec.sealed:
            return False
        if settlement.verdict is Verdict.RELEASE:
            until = self._resting.get(lease.queue, 0.0 if len(self._resting) < MOST_RESTING else math.inf)
            if until < now + settlement.delay_s:
                self._resting[lease.queue] = now + settlement.delay_s
            return False
        backend = _backend(lease.queue)
        ended = [queue for queue in self._resting if _backend(queue) == backend]
        for queue in ended:
            del self._resting[queue]
        return bool(ended)

    def _count(self, held: HeldLease, change: int) -> None:
        lease = held.lease
        self._failing += change * lease.failing
        self._suspects += change * held.suspect
        if not lease.proven:
            self._unproven[lease.token] += change
            self._all_unproven += change
        for kind, name in self._holders(lease):
            held_by = self._held[kind]
            held_by[name] += change
            if held_by[name] >= self._share:
                self._large[kind, name] = None
            else:
                self._large.pop((kind, name), None)
                if not held_by[name]:
                    del held_by[name]

    def _holders(self, lease: Lease) -> Sequence[Holder]:
        """The holders to whose shares a lease counts.

        A callback's destination is no holder, because it has a limit in the fleet.
        """
        token: Sequence[Holder] = [("token", lease.token)] if lease.token else []
        return token if self._kind is Kind.CALLBACK else [("queue", lease.queue), *token]

    def _bounds(self, token: str) -> tuple[object, ...]:
        return (
            self._all_unproven >= self._share,
            self._failing >= self._failing_share,
            len(self._large),
            self._suspects,
            token and [number < 1 for number in self._left_to(token)],
        )

    def shares(self, now: float) -> Shares:
        """Which leases the process may ask for; `now` is Trio time."""
        for holder in [holder for holder, until in self._capped_until.items() if until <= now]:
            del self._capped_until[holder]
        for queue in [queue for queue, until in self._resting.items() if until <= now]:
            del self._resting[queue]
        large = [name for holder, name in self._large if holder == "queue"]
        never = [name for name in large if ("queue", name) in self._capped_until] + list(self._resting)
        last = [name for name in large if name not in never]
        tokens = {name: self._left_to(name) for name in self._held["token"]}
        shares = Shares(
            last=last, never=never, token=self._left_to(""), tokens=tokens, suspects=self._suspects
        )
        if self._kind is Kind.DOWNLOAD:
            return shares
        return replace(
            shares,
            unproven=max(0, self._share - self._all_unproven),
            failing=max(0, self._failing_share - self._failing),
        )

    def _left_to(self, token: str) -> TokenShare:
        """Most tasks that a token may still get.

        Deliveries are not interrupted, so a slot cannot be taken back for another token. A quarter of the
        callback slots is therefore kept free for other tokens, and half of the slots for unproven
        destinations.
        """
        held = self._held["token"][token]
        before_last = self._share - held
        if self._kind is Kind.DOWNLOAD:
            most = 0 if ("token", token) in self._capped_until else self._slots
            return TokenShare(before_last, most)
        most = max(1, self._slots - self._slots // 4) - held
        return TokenShare(before_last, most, max(1, self._share // 2) - self._unproven[token])

    def too_large(self) -> Holder | None:
        """An aggregation or token with more download slots than its share, if any."""
        if self._kind is Kind.CALLBACK:
            return None
        return next(
            ((kind, name) for kind, name in self._large if self._held[kind][name] > self._share), None
        )

    def leases_beyond_share(
        self, holder: Holder, others: int, held: Iterable[HeldLease], now: float
    ) -> Sequence[HeldLease]:
        """The leases that are handed back because `others` queues wait: the newest, down to the share.

        A lease with cancelled work counts as handed back, even if the work takes long to end.
        """
        self._capped_until[holder] = now + HOLD_S
        working = set().union(*self._working.values())
        leases = [
            lease
            for lease in held
            if lease in working and holder in self._holders(lease.lease) and not lease.work.cancel_called
        ]
        count = min(others, len(leases) - self._share)
        return leases[len(leases) - count :] if count > 0 else []


def _backend(queue: str) -> str:
    """The type of a callback destination's queue."""
    return queue.partition(" ")[0]
