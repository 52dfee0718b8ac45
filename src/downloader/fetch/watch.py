"""The time limits of one attempt: a `Watch` moves the deadline of a single cancel scope."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

_WINDOW_PARTS = 8
"""The speed is checked at most 8 times per window, so that most calls of `flow` are cheap."""


class Watch:
    """Sets the deadline of `scope`, which the caller enters; `reason` tells which limit was exceeded.

    `total_s` is the time limit of the whole attempt, in seconds from now.
    """

    def __init__(self, *, total_s: float) -> None:
        self._end = trio.current_time() + total_s
        self.scope = trio.CancelScope(deadline=self._end)
        self._total_s = total_s
        self._phase = ""
        self._needed = 0.0
        """Bytes that must be received in each window."""
        self._window_s = math.inf
        self._start = 0.0
        """Trio time at which the present window began."""
        self._base = 0
        """Bytes received when the present window began."""

    @property
    def reason(self) -> str:
        """The exceeded time limit, in words."""
        if self._phase and self.scope.deadline < self._end:
            return self._phase
        return f"not done within the job's download_timeout of {self._total_s:g} s"

    def expect(self, phase: str, seconds: float) -> None:
        """See `downloader.net.Route.expect`."""
        self._phase = phase
        self.scope.deadline = min(self._end, trio.current_time() + seconds)

    def expect_flow(self, rate: float, seconds: float, *, received: int = 0) -> None:
        """Require from now on `rate` bytes per second, on average over about `seconds`.

        `received` is the number of bytes so far.
        """
        self._needed = rate * seconds
        self._window_s = seconds
        self._start = trio.current_time()
        self._base = received
        self.expect(f"slower than {rate:g} bytes per second for {seconds:g} s", seconds)

    def flow(self, received: int) -> None:
        """Record the total number of bytes received so far."""
        if received - self._base < self._needed:
            return
        now = trio.current_time()
        if now - self._start >= self._window_s / _WINDOW_PARTS:
            self._start, self._base = now, received
            self.scope.deadline = min(self._end, now + self._window_s)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the low-speed clock while the local disk is slow; the total deadline runs on."""
        began = trio.current_time()
        left_s = self.scope.deadline - began
        self.scope.deadline = self._end
        yield
        now = trio.current_time()
        self._start += now - began
        self.scope.deadline = min(self._end, now + left_s)
