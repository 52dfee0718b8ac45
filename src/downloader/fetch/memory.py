"""The memory that the bodies of all downloads of a process share."""

from __future__ import annotations

import trio


class BodyMemory:
    """A number of bytes for the bodies that are in memory, shared fairly among aggregations.

    An aggregation has room for as much as it leaves free. So one alone gets half, each of three a quarter,
    and an aggregation that holds little always finds room.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._held: dict[str, int] = {}
        """Bytes by aggregation, without aggregations that hold no bytes."""
        self._waiting: dict[trio.Event, tuple[str, int]] = {}
        """Aggregation and bytes of each waiting `reserve`, in order of arrival."""

    def hold(self, aggregation: str, size: int) -> bool:
        """Count received bytes; returns whether there is room for the bytes.

        They count without room too. Then the caller writes them to the disk, and receives no more until
        that is done.
        """
        held = self._held.get(aggregation, 0) + size
        self._held[aggregation] = held
        self._free -= size
        return held <= self._free

    async def reserve(self, aggregation: str, size: int, *, within_s: float) -> bool:
        """Count bytes to be received, once there is room; false: there was no room within `within_s`.

        A cancel leaves nothing counted: a wait for an event that was set returns in spite of it.
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
