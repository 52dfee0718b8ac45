"""How a plugin fares, and what that means for its callbacks: one that raises or hangs harms nobody else.

A *bulkhead* keeps any backend from taking all the slots of the process, and a *breaker* offers few callbacks
to a backend that is unhealthy. What is not let through is handed back to the queue, which uses up no attempt.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never

import trio

from downloader.observe import Event, get_logger

_log = get_logger()

UNHEALTHY_AFTER = 3
"""Failures of a plugin in a row; one or two may be one odd destination's."""

SHARE = 0.75
"""Part of the slots free of other backends that one may take: what is left keeps the others going, also
when a second one hangs."""

STALL_S = 0.5
"""A backend that has its share in flight and ends nothing for this long is not worth waiting for."""

SHORTEST_S, LONGEST_S = 1.0, 30.0
"""How long callbacks are handed back for: as long as the trouble has lasted, within these bounds. The first
bounds the load on the store, the second the time to recover."""

JITTER = 0.25
"""Each such delay is up to this part shorter or longer, so that they do not all come back at once."""


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """How a plugin itself fares, whatever its destinations answer."""

    failures: int = 0
    """In a row: it raised, hung, or answered what is no result."""
    last_error: str = ""
    """Of the last failure ever; one line without anything of the plugin's own text."""
    lost_at: float = 0.0
    """Trio time at which it became unhealthy, if it is."""
    regained_at: float = -math.inf
    """Trio time at which it became healthy again, if it ever was not."""

    @property
    def healthy(self) -> bool:
        """Whether the plugin can be relied on."""
        return self.failures < UNHEALTHY_AFTER

    def failed(self, error: str, *, now: float) -> BackendHealth:
        """The health after one more failure."""
        lost_at = now if self.healthy else self.lost_at
        return replace(self, failures=self.failures + 1, last_error=error, lost_at=lost_at)

    def worked(self, *, now: float) -> BackendHealth:
        """The health after the plugin did its part, also if the destination did not."""
        return replace(self, failures=0, regained_at=self.regained_at if self.healthy else now)


@dataclass(frozen=True, slots=True)
class Deliver:
    """Go on."""


@dataclass(frozen=True, slots=True)
class Wait:
    """The share is in use but moves: wait for a slot, until then."""

    until: float
    """Trio time."""


@dataclass(frozen=True, slots=True)
class HandBack:
    """Back to the queue, without using up an attempt."""

    delay_s: float


Admission = Deliver | Wait | HandBack


def share(slots: int, *, others: int, backends: int) -> int:
    """How many callbacks a backend may have in flight while the others have `others` of all `slots`."""
    if backends == 1:
        return slots
    return max(1, int((slots - others) * SHARE))


def admit(
    now: float, health: BackendHealth, *, in_flight: int, share: int, begun_at: float, moved_at: float
) -> Admission:
    """What is to become of one more callback for a backend; pure.

    An unhealthy one is probed at pauses that double, each probe being a callback; one that hangs does not
    keep the next from being tried. A healthy one goes on up to its share; beyond it, callbacks wait as long
    as deliveries end.

    Args:
        now: Trio time, like the others.
        health: of the backend.
        in_flight: callbacks that it has in flight.
        share: how many it may have.
        begun_at: when its last delivery began.
        moved_at: when one last ended, or the first of those in flight began.
    """
    if not health.healthy:
        last = max(health.lost_at, begun_at)
        pause = _bounded(last - health.lost_at)
        return Deliver() if now >= last + pause and in_flight < share else HandBack(pause)
    if in_flight < share:
        return Deliver()
    quiet = now - moved_at
    return Wait(moved_at + STALL_S) if quiet < STALL_S else HandBack(_bounded(quiet))


def _bounded(seconds: float) -> float:
    return min(max(seconds, SHORTEST_S), LONGEST_S)


class HealthBook:
    """The health of a process's backends; tells the log when one becomes unhealthy or healthy."""

    def __init__(self, backends: Iterable[str]) -> None:
        self._health = {name: BackendHealth() for name in backends}

    def __getitem__(self, name: str) -> BackendHealth:
        return self._health[name]

    @property
    def unhealthy(self) -> int:
        """How many backends are unhealthy."""
        return sum(not health.healthy for health in self._health.values())

    def healthy(self) -> Mapping[str, bool]:
        """Whether each is healthy."""
        return {name: health.healthy for name, health in self._health.items()}

    def facts(self) -> Mapping[str, Mapping[str, object]]:
        """What the instance's report says of its backends."""
        return {
            name: {"healthy": health.healthy, "last_error": health.last_error}
            for name, health in self._health.items()
        }

    def failed(
        self,
        name: str,
        reason: str,
        *,
        begun_at: float,
        error: BaseException | None = None,
        **facts: str,
    ) -> bool:
        """Note a failure of the plugin; answers whether it is to count as an attempt at the callback.

        It does while the plugin is healthy: then the callback may be at fault. What began in an outage that
        is over says nothing of the plugin now.

        Args:
            name: of the backend.
            reason: what it did, one line.
            begun_at: when the delivery began, Trio time.
            error: what it raised, for its traceback.
            facts: of the callback, for the log.
        """
        before = self._health[name]
        stale = begun_at <= before.regained_at
        # A plugin that fails each time would fill the log: the first failures tell.
        tell = _log.warning if before.healthy and not stale else _log.debug
        tell(Event.BACKEND_FAILED, backend=name, error=reason, exc_info=error, **facts)
        if stale:
            return False
        after = self._health[name] = before.failed(reason, now=trio.current_time())
        if before.healthy and not after.healthy:
            _log.error(Event.BACKEND_UNHEALTHY, backend=name, error=reason)
        return after.healthy

    def worked(self, name: str) -> None:
        """Note that the plugin did its part."""
        before = self._health[name]
        if not before.failures:
            return
        self._health[name] = before.worked(now=trio.current_time())
        if not before.healthy:
            _log.warning(Event.BACKEND_HEALTHY, backend=name)


@dataclass(slots=True, eq=False)
class Passage:
    """A callback that was let through."""

    backend: str
    begun_at: float
    late: bool = False
    """Whether it was found to take too long."""


@dataclass(slots=True)
class _Flight:
    passages: dict[Passage, None] = field(default_factory=dict)
    """The oldest first."""
    begun_at: float = 0.0
    moved_at: float = 0.0
    line: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    """Those that wait for a slot."""


class Gate:
    """Lets callbacks through to the backends of one process.

    Args:
        backends: the names of those configured.
        slots: how many callbacks the process has in flight at most.
        rng: source of the delays' jitter.
    """

    def __init__(self, backends: Iterable[str], *, slots: int, rng: random.Random) -> None:
        self._flights = {name: _Flight() for name in backends}
        self._slots = slots
        self._rng = rng
        self._in_flight = 0
        self.health = HealthBook(self._flights)

    async def enter(self, backend: str) -> Passage | HandBack:
        """Get leave to deliver, after a short wait if need be; whoever has it gives it back to `leave`."""
        flight = self._flights[backend]
        while True:
            now, mine = trio.current_time(), len(flight.passages)
            room = share(self._slots, others=self._in_flight - mine, backends=len(self._flights))
            match admit(
                now,
                self.health[backend],
                in_flight=mine,
                share=room,
                begun_at=flight.begun_at,
                moved_at=flight.moved_at,
            ):
                case Deliver():
                    return self._begin(backend, flight, now)
                case Wait(until):
                    with trio.move_on_at(until):
                        await flight.line.park()
                case HandBack(delay_s):
                    return HandBack(delay_s * self._rng.uniform(1 - JITTER, 1 + JITTER))
                case never:
                    assert_never(never)

    def leave(self, passage: Passage) -> None:
        """Give the slot back."""
        flight = self._flights[passage.backend]
        del flight.passages[passage]
        flight.moved_at = trio.current_time()
        self._in_flight -= 1
        # The others' shares have grown too.
        for each in self._flights.values():
            each.line.unpark()

    def note_late(self, after_s: float) -> None:
        """Count each delivery against its backend that has not ended `after_s` seconds after it began.

        Each is cancelled in time: this finds those that do not heed it, such as one stuck in a thread.
        """
        now = trio.current_time()
        for name, flight in self._flights.items():
            for passage in flight.passages:
                if now - passage.begun_at < after_s:
                    break
                if not passage.late:
                    passage.late = True
                    reason = f"backend {name} failed: does not end when it is cancelled"
                    self.health.failed(name, reason, begun_at=passage.begun_at)

    def _begin(self, backend: str, flight: _Flight, now: float) -> Passage:
        if not flight.passages:
            flight.moved_at = now
        passage = Passage(backend, now)
        flight.passages[passage] = None
        flight.begun_at = now
        self._in_flight += 1
        return passage
