"""The memory that the bodies of all downloads of a process share."""

from __future__ import annotations

import trio


class BodyMemory:
    """The budget of bytes for bodies in memory, shared fairly among aggregations.

    An aggregation may hold as many bytes as are free. So a single aggregation gets half of the budget, each
    of three a quarter, and an aggregation that holds little nearly always finds room.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._held: dict[str, int] = {}
        """Bytes by aggregation, without aggregations that hold no bytes."""
        self._waiting: dict[trio.Event, tuple[str, int]] = {}
        """Aggregation and bytes of each waiting `reserve`, in order of arrival."""

    def hold(self, aggregation: str, size: int) -> bool:
        """Count received bytes; returns whether there is room for the bytes.

        The bytes count even without room. The caller then writes the bytes to the disk before receiving more.
        """
        held = self._held.get(aggregation, 0) + size
        self._held[aggregation] = held
        self._free -= size
        return held <= self._free

    async def reserve(self, aggregation: str, size: int, *, within_s: float) -> bool:
        """Wait for room for bytes that will be received, and count the bytes; false if `within_s` has passed.

        After a cancel nothing is counted: if the event was already set, the wait returns without a cancel.
        """
        if self._take(aggregation, size):
            return True
        taken = trio.Event()
        self._waiting[taken] = aggregation, size
        try:
            with trio.move_on_after(within_s):
                await taken.wait()
        finally:
            self._waiting.pop(taken, None)
        return taken.is_set()

    def let_go(self, aggregation: str, size: int) -> None:
        """Count bytes no longer."""
        self._free += size
        held = self._held.get(aggregation, 0) - size
        if held:
            self._held[aggregation] = held
        else:
            self._held.pop(aggregation, None)
        for taken, (waiting, wanted) in list(self._waiting.items()):
            if self._take(waiting, wanted):
                del self._waiting[taken]
                taken.set()

    def _take(self, aggregation: str, size: int) -> bool:
        """Count bytes if there is room for all bytes."""
        held = self._held.get(aggregation, 0) + size
        if held > self._free - size:
            return False
        self._held[aggregation] = held
        self._free -= size
        return True
