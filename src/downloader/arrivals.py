"""How often something happens, lately: what decides whether a call waits for company."""

from __future__ import annotations

import math

import trio

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
