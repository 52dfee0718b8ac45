"""The high-water mark: no download begins while the spool's disk is too full."""

from __future__ import annotations

from collections.abc import Callable

import trio

from downloader.observe import Event, get_logger

log = get_logger()

LOOK_S = 1.0
"""Seconds between two looks at the disk; a look for each lease call would cost more and show no more."""


class DiskGate:
    """Closed from the moment the disk is `high` percent full until it is less than `low` percent full.

    `used_percent` reads how full the disk is. It runs in a thread, because a hung mount blocks it. The gate
    then stays as it is.
    """

    def __init__(self, used_percent: Callable[[], float], *, high: float, low: float) -> None:
        self._used_percent = used_percent
        self._high = high
        self._low = low
        self._open = True
        self._thread = trio.CapacityLimiter(1)
        """Of its own, so that a hung look takes no thread from others."""

    def __call__(self) -> bool:
        """Whether a download may begin."""
        return self._open

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at the disk until cancelled; ready after the first look, or after `LOOK_S` if it hangs.

        Raises:
            OSError: the disk cannot be looked at.
        """
        with trio.move_on_after(LOOK_S):
            await self.look()
        task_status.started()
        while True:
            await trio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Look at the disk once. A cancel leaves a hung look behind.

        Raises:
            OSError: the disk cannot be looked at.
        """
        used = await trio.to_thread.run_sync(self._used_percent, abandon_on_cancel=True, limiter=self._thread)
        if self._open and used >= self._high:
            self._open = False
            log.error(Event.DISK_FULL, used_percent=round(used, 1), high=self._high)
        elif not self._open and used < self._low:
            self._open = True
            log.info(Event.DISK_RESUMED, used_percent=round(used, 1), low=self._low)
