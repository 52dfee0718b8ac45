"""Group commit: items that are submitted at the same time are committed in one call.

Items that arrive during a commit form the next batch. A lone item is committed at once; only under load may a
batch wait for more items.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import trio

from downloader.errors import DownloaderError
from downloader.tasks import background

T = TypeVar("T")
R = TypeVar("R")


class CommitAbandoned(DownloaderError):
    """`GroupCommit.run` has ended; the item may or may not have been committed."""


class _Item(Generic[T, R]):
    """An item, and the task that waits for the result: an event for each would cost twice as much."""

    __slots__ = ("done", "error", "result", "task", "value")

    def __init__(self, value: T) -> None:
        self.value = value
        self.task: trio.lowlevel.Task | None = None
        self.done = False
        self.result: R | None = None
        self.error: Exception | None = None

    async def wait(self, *, shield: bool = False) -> None:
        """Wait until the item has ended, once; with `shield` a cancel has no effect."""

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            if shield:
                return trio.lowlevel.Abort.FAILED
            self.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        self.task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def end(self, result: R | None = None, error: Exception | None = None) -> None:
        """Set the result or the error, and wake the task."""
        self.done, self.result, self.error = True, result, error
        if self.task is not None:
            trio.lowlevel.reschedule(self.task)
            self.task = None


class GroupCommit(Generic[T, R]):
    """Collects items from many tasks and commits items in batches, while `run` or `running` runs.

    Lanes are committed concurrently, each in separate calls. The items of a lane are committed in order, in
    one call after the other.

    Args:
        commit: takes items of one lane and returns one result per item, in order. An exception that it raises
            is raised by the `submit` of each item; a wrong number of results is a `ValueError`.
        max_batch: most items in one call.
        weight: the weight of an item.
        max_weight: most weight in one call; a heavier item is committed alone.
        lane: the lane of an item; by default all items have the same.
        linger_s: called when an idle lane gets an item; the seconds for which the batch waits for more items.
        finish_s: seconds for which a cancelled `submit` waits for the call that commits the item.
        lane_errors: exceptions of `commit` that the items which wait in the lane get too, since the next call
            would only take as long to fail.
        shield: a cancel has no effect on `submit`.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        max_batch: int,
        weight: Callable[[T], int] = lambda _: 0,
        max_weight: float = math.inf,
        lane: Callable[[T], Hashable] = lambda _: None,
        linger_s: Callable[[], float] = lambda: 0.0,
        finish_s: float = 0.0,
        lane_errors: type[Exception] | tuple[type[Exception], ...] = (),
        shield: bool = False,
    ) -> None:
        self._commit = commit
        self._max_batch = max_batch
        self._weight = weight
        self._max_weight = max_weight
        self._lane = lane
        self._linger_s = linger_s
        self._finish_s = finish_s
        self._lane_errors = lane_errors
        self._shield = shield
        self._lanes: dict[Hashable, dict[_Item[T, R], None]] = {}
        """Items that are in no call yet, by lane; an empty lane is removed."""
        self._idle: list[Hashable] = []
        """Lanes for which no task runs yet."""
        self._has_idle = trio.Event()
        self._ended = False

    @property
    def waiting(self) -> int:
        """How many items are in no call yet."""
        return sum(map(len, self._lanes.values()))

    async def submit(self, value: T) -> R:
        """Commit `value` and return the result.

        A cancel withdraws an item that is in no call yet. If the item is in a call, the cancel waits at most
        `finish_s` for the end of the call; after that the item may or may not be committed.

        Raises:
            CommitAbandoned: `run` has ended.
        """
        if self._ended:
            # The end of the whole, for example a crash, has mostly cancelled this task too.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise CommitAbandoned("closed")
        item: _Item[T, R] = _Item(value)
        key = self._lane(value)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = {}
            self._idle.append(key)
            self._has_idle.set()
        lane[item] = None
        try:
            await item.wait(shield=self._shield)
        except BaseException:  # a cancel
            if item in lane:
                del lane[item]
            elif not item.done and self._finish_s:
                with trio.move_on_after(self._finish_s, shield=True):
                    await item.wait()
            raise
        if item.error is not None:
            try:
                # A copy: each task adds its own traceback to the exception that it raises.
                error = copy.copy(item.error)
            except Exception:  # noqa: BLE001  # not all classes can be called with their `args`
                raise item.error from None
            raise error from item.error
        return item.result  # type: ignore[return-value]  # set whenever `error` is not

    def running(self) -> AbstractAsyncContextManager[None]:
        """Run `run` while the context is open; see `background`."""
        return background(self.run)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit batches until cancelled; items that are in no call then are not committed."""
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    await self._has_idle.wait()
                    self._has_idle = trio.Event()
                    for key in self._idle:
                        nursery.start_soon(self._drain, key)
                    self._idle.clear()
        finally:
            self._ended = True
            for lane in self._lanes.values():
                _fail(lane, CommitAbandoned("closed"))
                lane.clear()

    async def _drain(self, key: Hashable) -> None:
        """Commit the items of a lane until the lane is empty."""
        lane = self._lanes[key]
        linger_s = self._linger_s()
        if linger_s > 0 and len(lane) < self._max_batch:
            await trio.sleep(linger_s)
        while lane:
            await self._commit_batch(self._take(lane), lane)
        del self._lanes[key]

    def _take(self, lane: dict[_Item[T, R], None]) -> list[_Item[T, R]]:
        batch: list[_Item[T, R]] = []
        room = self._max_weight
        for item in lane:
            room -= self._weight(item.value)
            if len(batch) == self._max_batch or (batch and room < 0):
                break
            batch.append(item)
        for item in batch:
            del lane[item]
        return batch

    async def _commit_batch(self, batch: Sequence[_Item[T, R]], lane: dict[_Item[T, R], None]) -> None:
        try:
            results = await self._commit([item.value for item in batch])
            pairs = list(zip(batch, results, strict=True))
        except Exception as error:  # noqa: BLE001  # raised by each waiting `submit`
            _fail(batch, error)
            if isinstance(error, self._lane_errors):
                _fail(lane, error)
                lane.clear()
            return
        except BaseException:
            _fail(batch, CommitAbandoned("closed"))
            raise
        for item, result in pairs:
            item.end(result)


def _fail(items: Iterable[_Item[T, R]], error: Exception) -> None:
    for item in items:
        item.end(error=error)
