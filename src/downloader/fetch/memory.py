"""The memory that the bodies of all downloads of a process share."""

from __future__ import annotations


class BodyMemory:
    """A number of bytes for the bodies that are in memory, shared fairly among aggregations.

    An aggregation has room for as much as it leaves free. So one alone gets half, each of three a quarter,
    and an aggregation that holds little always finds room.
    """

    def __init__(self, size: int) -> None:
        self._free = size
        self._held: dict[str, int] = {}
        """Bytes by aggregation, without aggregations that hold no bytes."""

    def hold(self, aggregation: str, size: int) -> bool:
        """Count received bytes; returns whether there is room for the bytes.

        They count without room too. Then the caller writes them to the disk, and receives no more until
        that is done.
        """
        held = self._held.get(aggregation, 0) + size
        self._held[aggregation] = held
        self._free -= size
        return held <= self._free

    def let_go(self, aggregation: str, size: int) -> None:
        """Count bytes no longer."""
        self._free += size
        held = self._held.get(aggregation, 0) - size
        if held:
            self._held[aggregation] = held
        else:
            self._held.pop(aggregation, None)
