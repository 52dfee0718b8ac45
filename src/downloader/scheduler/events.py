"""Events for the tasks of a scheduler: a wake-up, the two-phase stop, and the rate of events."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import trio


class Wake:
    """An event for a single waiter, with automatic reset. A wait after `set` returns at once."""

    def __init__(self) -> None:
        self._event = trio.Event()
        self._woken: set[int | None] = set()
        self._due: dict[int | None, float] = {}
        """Trio time of the events that have a delay, by shard of the store; `None` stands for all shards."""
        self._waiting = trio.CancelScope()
        self.is_awaited = False
        """Whether a task is in `wait_for`."""

    def set(self, delay_s: float = 0, shard: int | None = None) -> None:
        """Wake the waiter, or let the next wait return at once; `wait_for` returns after the delay."""
        if delay_s > 0:
            due = trio.current_time() + delay_s
            self._due[shard] = min(due, self._due.get(shard, due))
            self._waiting.deadline = min(self._waiting.deadline, due)
        else:
            self._woken.add(shard)
            self._event.set()

    def take(self) -> Collection[int | None]:
        """Reset; returns the shards of the events until now."""
        now = trio.current_time()
        shards = self._woken | {shard for shard, due in self._due.items() if due <= now}
        self._due = {shard: due for shard, due in self._due.items() if due > now}
        self._woken = set()
        self._event = trio.Event()
        return shards

    async def wait(self) -> None:
        """Return after one or more `set`, and reset. A cancelled wait does not reset."""
        await self._event.wait()
        self._event = trio.Event()

    async def wait_for(self, longest_s: float) -> None:
        """Return after one or more `set`, after the delay of one, or after `longest_s` seconds."""
        deadline = min([trio.current_time() + longest_s, *self._due.values()])
        self.is_awaited = True
        with trio.CancelScope(deadline=deadline) as self._waiting:
            await self.wait()
        self.is_awaited = False


class Stop:
    """The stop of a process or of some roles: leasing ends at once, work in flight at a deadline.

    A stop begins once and cannot be taken back.
    """

    def __init__(self) -> None:
        self.deadline = math.inf
        """Trio time at which work in flight is cancelled and handed back; infinite until the stop begins."""
        self._begun = trio.Event()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def begun(self) -> bool:
        """Whether leasing has ended."""
        return self._begun.is_set()

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return trio.current_time() >= self.deadline

    def begin(self, grace_s: float) -> None:
        """End leasing and give work in flight `grace_s` seconds; a later call changes nothing."""
        if self.begun:
            return
        self.deadline = trio.current_time() + grace_s
        self._begun.set()
        for call in self._callbacks:
            call()

    def on_begin(self, call: Callable[[], None]) -> None:
        """Register `call`, which runs when the stop begins, after `deadline` is set."""
        self._callbacks.append(call)

    async def wait(self) -> None:
        """Return once the stop has begun."""
        await self._begun.wait()


WINDOW_S = 0.5
"""Events count for about so long."""


class Arrivals:
    """An average rate of events; old events count less and less."""

    __slots__ = ("_at", "_count")

    def __init__(self) -> None:
        self._count = 0.0
        self._at = -math.inf

    def add(self, count: int = 1) -> None:
        """Note that so many have come now."""
        self._count = self._decayed() + count
        self._at = trio.current_time()

    def per_s(self) -> float:
        """Events a second."""
        return self._decayed() / WINDOW_S

    def _decayed(self) -> float:
        return self._count * math.exp((self._at - trio.current_time()) / WINDOW_S)


MOST_ALONE = 64
"""Most calls that go at once between two waits without company."""


class Company:
    """The expectation that a call which waits finds company, judged by the last waits.

    After a wait without company 1, 2, 4 ... calls go at once, until a call has company. A client that sends
    the next job after the callback of the last one always has none, so its jobs hardly ever wait.
    """

    __slots__ = ("_at_once", "_left")

    def __init__(self) -> None:
        self._at_once = 0
        """How many calls went at once after the last wait."""
        self._left = 0

    @property
    def expected(self) -> bool:
        """Whether the next call should wait."""
        return self._left == 0

    def note(self, leases: int, *, waited: bool) -> None:
        """Note how many leases a call brought, and whether the call had waited."""
        if leases > 1:
            self._at_once = self._left = 0
        elif waited:
            self._at_once = self._left = min(2 * self._at_once or 1, MOST_ALONE)
        elif self._left:
            self._left -= 1
