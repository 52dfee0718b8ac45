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
        """Return after a `set`, at the end of the delay of an earlier `set`, or after `longest_s` seconds."""
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
"""Time constant of the average: an event counts for about this long."""


class Arrivals:
    """An average rate of events; old events count less and less."""

    __slots__ = ("_at", "_count")

    def __init__(self) -> None:
        self._count = 0.0
        self._at = -math.inf

    def add(self, count: int = 1) -> None:
        """Count events that happen now."""
        self._count = self._decayed() + count
        self._at = trio.current_time()

    def per_s(self) -> float:
        """Events a second."""
        return self._decayed() / WINDOW_S

    def _decayed(self) -> float:
        return self._count * math.exp((self._at - trio.current_time()) / WINDOW_S)


MAX_IMMEDIATE = 64
"""Most immediate calls between two calls that linger in vain."""


class Lingering:
    """Decides whether a lease call should linger (wait for more tasks), by the results of former calls.

    If a call lingers and brings a single lease, the next 1, 2, 4 ... calls are made at once, until a call
    brings several. So a client that sends each job only after the callback of the last one hardly ever waits.
    """

    __slots__ = ("_immediate", "_immediate_left")

    def __init__(self) -> None:
        self._immediate = 0
        """How many calls were to be made at once after the last call that lingered."""
        self._immediate_left = 0

    @property
    def pays(self) -> bool:
        """Whether the next call should linger."""
        return self._immediate_left == 0

    def note(self, leases: int, *, lingered: bool) -> None:
        """Note how many leases a call brought, and whether the call had lingered."""
        if leases > 1:
            self._immediate = self._immediate_left = 0
        elif lingered:
            self._immediate = self._immediate_left = min(2 * self._immediate or 1, MAX_IMMEDIATE)
        elif self._immediate_left:
            self._immediate_left -= 1
