"""The decision which callbacks may be sent now, so that a failing backend does not affect other backends.

The *bulkhead* limits the slots of the process that a backend may take. While a backend's circuit breaker is
open, the backend gets only probes. A callback that may not be sent is released: it returns to the queue, and
no attempt is counted.
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
"""A backend may hold at most 75% of the slots that other backends leave free. The remaining slots stay free
even if a second backend hangs."""

STALL_S = 0.5
"""How long a callback waits for a slot of a backend that uses the whole share and completes no delivery."""

SHORTEST_S, LONGEST_S = 1.0, 30.0
"""Limits of the delay of a released callback. Within the limits the delay is as long as the failure has
lasted. The shortest delay limits the load on the store, the longest delay the time to recover."""

UNKNOWN_RELEASES_PER_S = 100
"""Target rate at which the process leases and releases callbacks for backends that are not configured here.

A release costs 0.3 ms of CPU. The delay of the callbacks grows with their number, which keeps the rate at
this value until the delay reaches `LONGEST_S`. With even more such callbacks the rate is higher.
"""

_MISSING_NAMES = 100
"""Number of unknown backends that are logged. Jobs can name any number of backends."""

JITTER = 0.25
"""A delay is lengthened by up to this fraction, so that callbacks do not all return at the same time. It
is not shortened, because a callback that returns before the next probe is due would be released again."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The callback may be sent."""


@dataclass(frozen=True, slots=True)
class Wait:
    """All slots of the share are in use, but deliveries end: wait for a slot."""

    until: float
    """Trio time."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """The callback is to be released, and no attempt is counted."""

    delay_s: float
    """Seconds until the callback may be leased again, by any instance."""
    reason: str = ""
    """Shown in the job's log; may be empty."""


Admission = Admitted | Wait | Deferred


def share(slots: int, *, others: int, backends: int) -> int:
    """How many callbacks a backend may have in flight while other backends use `others` of `slots`."""
    if backends == 1:
        return slots
    return max(1, int((slots - others) * BACKEND_SHARE))


def admit(now: float, health: BackendHealth, *, room: bool, begun_at: float, moved_at: float) -> Admission:
    """Whether a further callback may be sent to a backend; pure. Times are Trio's.

    An unhealthy backend gets only probes (which are callbacks), with pauses that double. A hanging probe does
    not block the next one. Without room, the callbacks of a healthy backend wait as long as deliveries end.

    Args:
        now: the time.
        health: of the backend.
        room: whether the backend has fewer callbacks in flight than its share.
        begun_at: when the backend's last delivery began.
        moved_at: when a delivery last ended, or when the first delivery in flight began.
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
    """A slot, held by a callback in flight."""

    backend: str
    begun_at: float
    proven: bool
    """Whether the destination has answered lately."""
    counted_late: bool = False
    """Whether `note_late` has counted a failure for this delivery."""


@dataclass(slots=True)
class _Backend:
    """The callbacks in flight to a backend."""

    slots: dict[Slot, None] = field(default_factory=dict)
    """Oldest first."""
    unproven: int = 0
    """Number of slots with destinations that have not answered lately."""
    begun_at: float = 0.0
    moved_at: float = 0.0
    waiting: Mapping[bool, trio.lowlevel.ParkingLot] = field(
        default_factory=lambda: {proven: trio.lowlevel.ParkingLot() for proven in (True, False)}
    )
    """Tasks that wait for a slot, by whether the destination is proven."""


class Bulkhead:
    """Distributes the slots of a process among the configured backends; `rng` is for the jitter of delays."""

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
        """Get a slot, possibly after a short wait; the caller passes the slot to `release`.

        `proven` says whether the callback's destination has answered lately. Destinations that have not share
        half of the slots, and a backend gets only its share of that half. So callbacks to new destinations of
        other backends are sent even while all deliveries of a backend hang.

        A callback for a backend that is not configured here is deferred, because another instance may have
        the backend.
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
        in_flight, backends = len(backend.slots), len(self._backends)
        if in_flight >= share(self._slots, others=self._in_flight - in_flight, backends=backends):
            return False
        half, others = max(1, self._slots // 2), self._unproven - backend.unproven
        return proven or backend.unproven < share(half, others=others, backends=backends)

    def release(self, slot: Slot) -> None:
        """Free a slot."""
        backend = self._backends[slot.backend]
        del backend.slots[slot]
        backend.unproven -= not slot.proven
        self._unproven -= not slot.proven
        backend.moved_at = trio.current_time()
        self._in_flight -= 1
        # The shares of the other backends have grown too.
        for other in self._backends.values():
            for proven, waiting in other.waiting.items():
                if waiting and self._has_room(other, proven=proven):
                    waiting.unpark()

    def note_late(self, after_s: float) -> None:
        """Count a failure of the backend for each delivery that has not ended after `after_s` seconds.

        Deliveries are cancelled earlier, so these deliveries ignore the cancel, for example in a thread.
        """
        now = trio.current_time()
        for name, backend in self._backends.items():
            for slot in backend.slots:
                if now - slot.begun_at < after_s:
                    break
                if not slot.counted_late:
                    slot.counted_late = True
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
        """Defer a callback for an unknown backend; the delay grows with the number of these callbacks."""
        reason = f"backend {name} is not configured here: there is no [backends.{name}]"
        if name not in self._missing and len(self._missing) < _MISSING_NAMES:
            self._missing.add(name)
            _log.warning(Event.BACKEND_FAILED, backend=name, error=reason)
        now = trio.current_time()
        next_at = self._missing_at + 1 / UNKNOWN_RELEASES_PER_S
        self._missing_at = min(max(now + SHORTEST_S, next_at), now + LONGEST_S)
        return Deferred(self._jittered(self._missing_at - now), reason)

    def _jittered(self, delay_s: float) -> float:
        return delay_s * self._rng.uniform(1, 1 + JITTER)
