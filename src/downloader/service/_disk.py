"""The high-water mark: no download is begun while the spool's disk is too full."""

from __future__ import annotations

import time
from pathlib import Path

from downloader.fetch import disk_used_percent
from downloader.observe.events import Event
from downloader.observe.logging import get_logger

log = get_logger()

LOOK_S = 1.0
"""A disk does not fill faster than this matters; statvfs on each lease call would be waste."""


class DiskGate:
    """Closed from `high` percent used until it is below `low` again."""

    def __init__(self, folder: Path, *, high: float, low: float) -> None:
        self._folder = folder
        self._high = high
        self._low = low
        self._looked_at = float("-inf")
        self._open = True

    def __call__(self) -> bool:
        """Whether a download may begin."""
        now = time.monotonic()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            self._look()
        return self._open

    def _look(self) -> None:
        used = disk_used_percent(self._folder)
        if self._open and used >= self._high:
            self._open = False
            log.error(Event.DISK_FULL, folder=str(self._folder), used_percent=round(used, 1))
        elif not self._open and used < self._low:
            self._open = True
            log.info(Event.DISK_RESUMED, folder=str(self._folder), used_percent=round(used, 1))
