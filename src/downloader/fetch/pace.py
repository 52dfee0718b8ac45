"""A limit of the bytes per second that all downloads of a process receive together."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from downloader.fetch.watch import Watch

T = TypeVar("T", bytes | bytearray | None, bytes | None)


class Pace:
    """Delays receivers, so that all together receive at most `bytes_per_s`."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._paid_until = -math.inf

    async def read(self, read: Callable[[], Awaitable[T]], watch: Watch) -> T:
        """Call `read`, then wait until the bytes fit into the limit; returns the bytes.

        The low-speed clock of `watch` stops during the wait.
        """
        data = await read()
        now = trio.current_time()
        self._paid_until = max(self._paid_until, now) + len(data or b"") / self._bytes_per_s
        with watch.paused():
            await trio.sleep_until(self._paid_until)
        return data
