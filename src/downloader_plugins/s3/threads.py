"""Blocking calls in threads, whose callers can be cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

THREADS = 16
"""Most requests in flight of one storage, or of all buckets of jobs together."""

_PATIENCE_S = 0.25
"""How long a cancelled call waits for its thread, which can stop between two blocks of a body. Then the
thread is abandoned until its socket times out, so that a peer that hangs does not delay a stop."""

T = TypeVar("T")


class GivenUp(Exception):
    """The call was cancelled; its thread has to end without publishing anything."""


class Call:
    """The state of a call, shared by its thread and the task that waits for it."""

    __slots__ = ("begun", "given_up")

    def __init__(self) -> None:
        self.begun = False
        self.given_up = False

    def check(self) -> None:
        """Call this in the thread before each step that a cancel should prevent.

        Raises:
            GivenUp: the call was cancelled.
        """
        if self.given_up:
            raise GivenUp


class Threads:
    """A limited number of threads."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(THREADS)

    async def run(self, work: Callable[[Call], T]) -> T:
        """Call `work` in a thread; returns its result or raises its exception.

        A cancel prevents work that has not begun. Work in progress sees the cancel in its `Call`, has
        `_PATIENCE_S` to end, and counts as one of the `THREADS` until it has ended.
        """
        call, ended = Call(), trio.Event()
        results: list[T] = []
        error: Exception | None = None
        carrying = trio.CancelScope(shield=True)

        def in_thread() -> T:
            call.begun = True
            call.check()
            return work(call)

        async def carry() -> None:
            nonlocal error
            try:
                with carrying:
                    results.append(
                        await trio.to_thread.run_sync(
                            in_thread, abandon_on_cancel=True, limiter=self._limiter
                        )
                    )
            except Exception as exc:  # noqa: BLE001 - raised below, in the caller's task
                error = exc
            finally:
                ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            try:
                await ended.wait()
            except trio.Cancelled:
                call.given_up = True
                if call.begun:
                    carrying.deadline = trio.current_time() + _PATIENCE_S
                else:
                    carrying.cancel()
                raise
        if error is not None:
            raise error
        return results[0]
