"""Which callbacks may go to their backend now, so that a plugin that raises or hangs harms no other.

The *bulkhead* keeps any backend from taking all the slots of the process. While a backend's circuit breaker
is open, few callbacks go to it. What may not go is released: back to the queue, without using up an attempt.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

import trio

from downloader.notify.health import BackendHealth, Breakers
from downloader.observe import Event, get_logger

_log = get_logger()

SHARE = 0.75
"""Part of the slots free of other backends that one may take. What is left keeps the others going, also
when a second one hangs."""

STALL_S = 0.5
"""A backend that uses its whole share and completes nothing for this long is not worth waiting for."""

SHORTEST_S, LONGEST_S = 1.0, 30.0
"""Bounds of the delay of a released callback: within them, it is as long as the trouble has lasted. The first
bounds the load on the store, the second the time to recover."""

MISSING_PER_S = 100
"""Callbacks a second of backends not configured here that this process looks at; each costs a lease
and a release, 0.3 ms of CPU together. `LONGEST_S` lets it look at more."""

_MISSING_NAMES = 100
"""So many such backends are told to the log, once each; jobs can name any number."""

JITTER = 0.25
"""Each delay is up to this part shorter or longer, so that the callbacks do not all come back at once."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """It may go."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The share is in use, but deliveries end: wait for a slot, until then."""

    until: float
    """Trio time."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """It is to be released, without using up an attempt."""

    delay_s: float
    """Until it may be leased again, by any instance."""
    reason: str = ""
    """Kept with the job; empty: nothing that its client needs to know."""


Admission = Deliver | Wait | Deferred


def share(slots: int, *, others: int, backends: int) -> int:
    """How many callbacks a backend may have in flight while the others have `others` of all `slots`."""
    if backends == 1:
        return slots
    return max(1, int((slots - others) * SHARE))


def admit(now: float, health: BackendHealth, *, room: bool, begun_at: float, moved_at: float) -> Admission:
    """Whether one more callback may go to a backend; pure.

    An unhealthy backend is probed at pauses that double; each probe is a callback. A probe that hangs does
    not keep the next from being sent. A healthy backend has its share. Beyond it callbacks wait as long as
    deliveries end.

    Args:
        now: Trio time, like the others.
        health: of the backend.
        room: whether it has fewer callbacks in flight than its share.
        begun_at: when its last delivery began.
        moved_at: when one last ended, or the first of those in flight began.
    """
    if not health.healthy:
        last = max(health.lost_at, begun_at)
        pause = _bounded(last - health.lost_at)
        return Deliver() if now >= last + pause and room else Deferred(pause)
    if room:
        return Deliver()
    quiet = now - moved_at
    return Wait(moved_at + STALL_S) if quiet < STALL_S else Deferred(_bounded(quiet))


def _bounded(seconds: float) -> float:
    return min(max(seconds, SHORTEST_S), LONGEST_S)


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one callback in flight."""

    backend: str
    begun_at: float
    proven: bool
    """Whether its destination has answered lately."""
    late: bool = False
    """Whether it was found to take too long."""


@dataclass(slots=True)
class _Backend:
    """What is in flight to one backend."""

    slots: dict[Slot, None] = field(default_factory=dict)
    """The oldest first."""
    unproven: int = 0
    """How many of them go to destinations that have not answered lately."""
    begun_at: float = 0.0
    moved_at: float = 0.0
    waiting: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    """Those that wait for a slot."""


class Bulkhead:
    """Divides the slots of one process among its backends.

    Args:
        backends: the names of those configured.
        slots: how many callbacks the process has in flight at most.
        rng: source of the delays' jitter.
    """

    def __init__(self, backends: Iterable[str], *, slots: int, rng: random.Random) -> None:
        self._backends = {name: _Backend() for name in backends}
        self._missing: set[str] = set()
        self._missing_at = 0.0
        self._slots = slots
        self._rng = rng
        self._in_flight = 0
        self._unproven = 0
        self.health = Breakers(self._backends)

    async def acquire(self, name: str, *, proven: bool = True) -> Slot | Deferred:
        """Get a slot, after a short wait if need be; the caller gives it back to `release`.

        `proven` tells whether the callback's destination has answered lately. Those that have not share half
        of the slots, and a backend has no more than its share of that half either: callbacks to new
        destinations of the others go on while all of its deliveries hang.

        A callback of a backend that is not configured here is deferred, for an instance that has it.
        """
        backend = self._backends.get(name)
        if backend is None:
            return self._not_here(name)
        while True:
            now = trio.current_time()
            match admit(
                now,
                self.health[name],
                room=self._has_room(backend, proven=proven),
                begun_at=backend.begun_at,
                moved_at=backend.moved_at,
            ):
                case Deliver():
                    return self._begin(name, backend, now, proven=proven)
                case Wait(until):
                    with trio.move_on_at(until):
                        await backend.waiting.park()
                case Deferred(delay_s):
                    return Deferred(self._jittered(delay_s))
                case never:
                    assert_never(never)

    def _has_room(self, backend: _Backend, *, proven: bool) -> bool:
        mine, backends = len(backend.slots), len(self._backends)
        if mine >= share(self._slots, others=self._in_flight - mine, backends=backends):
            return False
        half, others = max(1, self._slots // 2), self._unproven - backend.unproven
        return proven or backend.unproven < share(half, others=others, backends=backends)

    def release(self, slot: Slot) -> None:
        """Give the slot back."""
        backend = self._backends[slot.backend]
        del backend.slots[slot]
        backend.unproven -= not slot.proven
        self._unproven -= not slot.proven
        backend.moved_at = trio.current_time()
        self._in_flight -= 1
        # The others' shares have grown too.
        for each in self._backends.values():
            each.waiting.unpark()

    def note_late(self, after_s: float) -> None:
        """Count each delivery against its backend that has not ended `after_s` seconds after it began.

        Each is cancelled in time: this finds those that ignore it, such as one stuck in a thread.
        """
        now = trio.current_time()
        for name, backend in self._backends.items():
            for slot in backend.slots:
                if now - slot.begun_at < after_s:
                    break
                if not slot.late:
                    slot.late = True
                    reason = f"backend {name} failed: does not end when it is cancelled"
                    self.health.failed(name, reason, begun_at=slot.begun_at)

    def _begin(self, name: str, backend: _Backend, now: float, *, proven: bool) -> Slot:
        if not backend.slots:
            backend.moved_at = now
        slot = Slot(name, now, proven)
        backend.slots[slot] = None
        backend.unproven += not proven
        self._unproven += not proven
        backend.begun_at = now
        self._in_flight += 1
        return slot

    def _not_here(self, name: str) -> Deferred:
        """Few such callbacks come back soon, for the instance that has the backend; many, in turn."""
        reason = f"backend {name} is not configured here: there is no [backends.{name}]"
        if name not in self._missing and len(self._missing) < _MISSING_NAMES:
            self._missing.add(name)
            _log.warning(Event.BACKEND_FAILED, backend=name, error=reason)
        now = trio.current_time()
        self._missing_at = min(max(now + SHORTEST_S, self._missing_at + 1 / MISSING_PER_S), now + LONGEST_S)
        return Deferred(self._jittered(self._missing_at - now), reason)

    def _jittered(self, delay_s: float) -> float:
        return delay_s * self._rng.uniform(1 - JITTER, 1 + JITTER)
