"""Blocking calls in threads of their own, whose callers can still be cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

THREADS = 16
"""Requests in flight of one storage, or of all buckets of jobs together."""

_PATIENCE_S = 0.25
"""A cancelled call has so long to end, enough to stop between two blocks of a body. Then its thread is left
to end by its socket's timeout: a peer that hangs must not delay a stop."""

T = TypeVar("T")


class GivenUp(Exception):
    """Nobody waits for this call any more; its thread is to end, publishing nothing."""


class Call:
    """What a thread knows of the task that waits for it."""

    __slots__ = ("begun", "given_up")

    def __init__(self) -> None:
        self.begun = False
        self.given_up = False

    def check(self) -> None:
        """Call it before each step that can be left out.

        Raises:
            GivenUp: leave it out.
        """
        if self.given_up:
            raise GivenUp


class _Result(Generic[T]):
    """Where a thread's answer is put."""

    __slots__ = ("error", "there", "values")

    def __init__(self) -> None:
        self.there = trio.Event()
        self.values: list[T] = []
        self.error: Exception | None = None


class Threads:
    """A bounded number of threads."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(THREADS)

    async def run(self, work: Callable[[Call], T]) -> T:
        """Do `work` in a thread; answers and raises what it does.

        On a cancel, work that has not begun never does; work under way is told through its `Call`, has a
        short time to end, and keeps its place among the threads until it has.
        """
        call, result = Call(), _Result[T]()
        carrying = trio.CancelScope(shield=True)

        def in_thread() -> T:
            call.begun = True
            call.check()
            return work(call)

        async def carry() -> None:
            try:
                with carrying:
                    result.values.append(
                        await trio.to_thread.run_sync(
                            in_thread, abandon_on_cancel=True, limiter=self._limiter
                        )
                    )
            except Exception as exc:  # noqa: BLE001 - raised below, in the caller's task
                result.error = exc
            finally:
                result.there.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            try:
                await result.there.wait()
            except trio.Cancelled:
                call.given_up = True
                if call.begun:
                    carrying.deadline = trio.current_time() + _PATIENCE_S
                else:
                    carrying.cancel()
                raise
        if result.error is not None:
            raise result.error
        return result.values[0]
