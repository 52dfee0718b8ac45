"""The high-water mark: no download begins while the spool's disk is too full."""

from __future__ import annotations

import time
from collections.abc import Callable

from downloader.observe import Event, get_logger

log = get_logger()

LOOK_S = 1.0
"""Seconds between two checks of the disk; a check for each lease call would cost more and show no more."""


class DiskGate:
    """Closed from the moment the disk is `high` percent full until it is less than `low` percent full.

    `used_percent` reads how full the disk is; `clock` returns seconds.
    """

    def __init__(
        self,
        used_percent: Callable[[], float],
        *,
        high: float,
        low: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._used_percent = used_percent
        self._high = high
        self._low = low
        self._clock = clock
        self._looked_at = float("-inf")
        self._open = True

    def __call__(self) -> bool:
        """Whether a download may begin."""
        now = self._clock()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._look()
        return self._open

    def _look(self) -> None:
        used = self._used_percent()
        if self._open and used >= self._high:
            self._open = False
            log.error(Event.DISK_FULL, used_percent=round(used, 1), high=self._high)
        elif not self._open and used < self._low:
            self._open = True
            log.info(Event.DISK_RESUMED, used_percent=round(used, 1), low=self._low)
