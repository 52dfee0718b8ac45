"""Decides which callbacks may be sent to their backend now, so that a failing plugin affects no other.

The *bulkhead* limits the slots of the process that one backend may take. While a backend's circuit breaker is
open, only probes are sent to it. A callback that may not be sent is released: it returns to the queue without
using up an attempt.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

import trio

from downloader.notify.health import BackendHealth, Breakers
from downloader.observe import Event, get_logger

_log = get_logger()

BACKEND_SHARE = 0.75
"""One backend may hold at most 75% of the slots that other backends leave free. The rest stays free for the
others, also when a second backend hangs."""

STALL_S = 0.5
"""How long a callback waits for a slot of a backend that has used up its share and completes nothing."""

SHORTEST_S, LONGEST_S = 1.0, 30.0
"""Limits of the delay of a released callback. Between them the delay is as long as the failure has lasted.
The shortest delay limits the load on the store, the longest one the time to recover."""

UNKNOWN_RELEASES_PER_S = 100
"""Target rate at which this process leases and releases callbacks whose backend is not configured here.

Each costs 0.3 ms of CPU. Their delay grows with their number, so that the rate stays at this value. The delay
ends at `LONGEST_S`; with more callbacks than that allows, the rate is higher.
"""

_MISSING_NAMES = 100
"""How many unknown backends are logged, once each; jobs can name any number."""

JITTER = 0.25
"""Each delay is up to this part shorter or longer, so that callbacks do not all return at once."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The callback may be sent."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The share is in use, but deliveries end: wait for a slot."""

    until: float
    """Trio time."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """The callback is to be released, without using up an attempt."""

    delay_s: float
    """Until it may be leased again, by any instance."""
    reason: str = ""
    """Shown in the job's record; may be empty."""


Admission = Admitted | Wait | Deferred


def share(slots: int, *, others: int, backends: int) -> int:
    """How many callbacks a backend may have in flight while other backends use `others` of `slots`."""
    if backends == 1:
        return slots
    return max(1, int((slots - others) * BACKEND_SHARE))


def admit(now: float, health: BackendHealth, *, room: bool, begun_at: float, moved_at: float) -> Admission:
    """Whether one more callback may be sent to a backend; pure. Times are Trio's.

    An unhealthy backend gets probes, which are callbacks, at pauses that double; a probe that hangs does not
    block the next one. Without room the callbacks of a healthy backend wait while deliveries end.

    Args:
        now: the time.
        health: of the backend.
        room: whether it has fewer callbacks in flight than its share.
        begun_at: when its last delivery began.
        moved_at: when a delivery last ended, or when the first one in flight began.
    """
    if not health.healthy:
        last = max(health.lost_at, begun_at)
        pause = _bounded(last - health.lost_at)
        return Admitted() if now >= last + pause and room else Deferred(pause)
    if room:
        return Admitted()
    quiet = now - moved_at
    return Wait(moved_at + STALL_S) if quiet < STALL_S else Deferred(_bounded(quiet))


def _bounded(seconds: float) -> float:
    return min(max(seconds, SHORTEST_S), LONGEST_S)


@dataclass(slots=True, eq=False)
class Slot:
    """A slot, held by one callback in flight."""

    backend: str
    begun_at: float
    proven: bool
    """Whether its destination has answered lately."""
    late: bool = False
    """Whether `note_late` has counted it."""


@dataclass(slots=True)
class _Backend:
    """The callbacks in flight to one backend."""

    slots: dict[Slot, None] = field(default_factory=dict)
    """Oldest first."""
    unproven: int = 0
    """How many of them go to destinations that have not answered lately."""
    begun_at: float = 0.0
    moved_at: float = 0.0
    waiting: Mapping[bool, trio.lowlevel.ParkingLot] = field(
        default_factory=lambda: {proven: trio.lowlevel.ParkingLot() for proven in (True, False)}
    )
    """Tasks that wait for a slot, by whether the destination of their callback is proven."""


class Bulkhead:
    """Distributes the slots of one process among its configured backends; `rng` gives the delays' jitter."""

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
        """Get a slot, possibly after a short wait; the caller passes it to `release`.

        `proven` says whether the callback's destination has answered lately. The other destinations share
        half of the slots, of which one backend gets only its share: callbacks to new destinations of other
        backends are sent while all of its deliveries hang.

        A callback of a backend that is not configured here is deferred: another instance may have it.
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
                case Admitted():
                    return self._begin(name, backend, now, proven=proven)
                case Wait(until):
                    with trio.move_on_at(until):
                        await backend.waiting[proven].park()
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
        """Free the slot."""
        backend = self._backends[slot.backend]
        del backend.slots[slot]
        backend.unproven -= not slot.proven
        self._unproven -= not slot.proven
        backend.moved_at = trio.current_time()
        self._in_flight -= 1
        # The shares of the other backends have grown too.
        for other in self._backends.values():
            for proven, waiting in other.waiting.items():
                if self._has_room(other, proven=proven):
                    waiting.unpark()

    def note_late(self, after_s: float) -> None:
        """Count a failure of the backend for each delivery that has not ended after `after_s` seconds.

        Deliveries are cancelled earlier: this finds those that ignore the cancel, such as one in a thread.
        """
        now = trio.current_time()
        for name, backend in self._backends.items():
            for slot in backend.slots:
                if now - slot.begun_at < after_s:
                    break
                if not slot.late:
                    slot.late = True
                    reason = f"backend {name} failed: did not end after a cancel"
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
        """Defer the callback; the delay grows with the number of such callbacks."""
        reason = f"backend {name} is not configured here: there is no [backends.{name}]"
        if name not in self._missing and len(self._missing) < _MISSING_NAMES:
            self._missing.add(name)
            _log.warning(Event.BACKEND_FAILED, backend=name, error=reason)
        now = trio.current_time()
        next_at = self._missing_at + 1 / UNKNOWN_RELEASES_PER_S
        self._missing_at = min(max(now + SHORTEST_S, next_at), now + LONGEST_S)
        return Deferred(self._jittered(self._missing_at - now), reason)

    def _jittered(self, delay_s: float) -> float:
        return delay_s * self._rng.uniform(1 - JITTER, 1 + JITTER)
