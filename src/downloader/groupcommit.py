"""Group commit: what happens at the same time travels together.

While one batch is on its way the next gathers. A lone item goes at once; only under load, where waiting
delays nobody who is alone, a batch may linger a little to become larger.
"""

from __future__ import annotations

import copy
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

from downloader.errors import DownloaderError

T = TypeVar("T")
R = TypeVar("R")


class CommitAbandoned(DownloaderError):
    """`GroupCommit.run` has ended; it is unknown whether the item was committed."""


class _Item(Generic[T, R]):
    __slots__ = ("answer", "done", "error", "value")

    def __init__(self, value: T) -> None:
        self.value = value
        self.done = trio.Event()
        self.answer: R | None = None
        self.error: Exception | None = None

    def fail(self, error: Exception) -> None:
        self.error = error
        self.done.set()


class GroupCommit(Generic[T, R]):
    """Gathers items from many tasks into calls of one function; needs `run` or `running`.

    Items of different lanes are committed at the same time, and never in one call. Those of one lane are
    committed in order, one call after the other.

    Args:
        commit: takes items of one lane, answers as many results in order; what it raises is raised to all
            of them.
        max_batch: items in one call at the most.
        weight: of an item.
        max_weight: of the items in one call together; an item that is heavier goes alone.
        lane: of an item; by default all have the same.
        linger_s: seconds for which an idle lane's first batch may wait for more, asked anew for each.
        finish_s: seconds for which a cancelled `submit` waits for a call that has its item.
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
    ) -> None:
        self._commit = commit
        self._max_batch = max_batch
        self._weight = weight
        self._max_weight = max_weight
        self._lane = lane
        self._linger_s = linger_s
        self._finish_s = finish_s
        self._lanes: dict[Hashable, dict[_Item[T, R], None]] = {}
        """Items that no call has taken; a lane is here from its first item until a task has drained it."""
        self._idle: list[Hashable] = []
        """Lanes that no task drains yet."""
        self._some = trio.Event()
        self._ended = False

    @property
    def waiting(self) -> int:
        """Items that no call has taken yet."""
        return sum(map(len, self._lanes.values()))

    async def submit(self, value: T) -> R:
        """Have `value` committed; answers its result.

        A cancel before its batch leaves withdraws it; after that it is unknown whether it was committed,
        unless the call ends within `finish_s`.

        Raises:
            CommitAbandoned: `run` has ended.
        """
        if self._ended:
            raise CommitAbandoned("closed")
        item: _Item[T, R] = _Item(value)
        key = self._lane(value)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = {}
            self._idle.append(key)
            self._some.set()
        lane[item] = None
        try:
            await item.done.wait()
        finally:
            if item in lane:
                del lane[item]
            elif not item.done.is_set() and self._finish_s:
                with trio.move_on_after(self._finish_s, shield=True):
                    await item.done.wait()
        if item.error is not None:
            # A copy, for each task adds its own traceback to what it raises.
            raise copy.copy(item.error) from item.error
        return item.answer  # type: ignore[return-value]  # set whenever `error` is not

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have `run` run. An error inside comes out as it is, in no group."""
        problem: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run)
            try:
                yield
            except Exception as error:  # noqa: BLE001  # raised below: the nursery would make a group of it
                problem = error
            finally:
                nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit batches until cancelled; items that wait then are not committed."""
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    await self._some.wait()
                    self._some = trio.Event()
                    for key in self._idle:
                        nursery.start_soon(self._drain, key)
                    self._idle.clear()
        finally:
            self._ended = True
            for lane in self._lanes.values():
                for item in lane:
                    item.fail(CommitAbandoned("closed"))
                lane.clear()

    async def _drain(self, key: Hashable) -> None:
        """Commit what waits in a lane, until nothing does."""
        lane = self._lanes[key]
        linger_s = self._linger_s()
        if linger_s > 0 and len(lane) < self._max_batch:
            await trio.sleep(linger_s)
        while lane:
            await self._commit_batch(self._take(lane))
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

    async def _commit_batch(self, batch: Sequence[_Item[T, R]]) -> None:
        try:
            answers = await self._commit([item.value for item in batch])
        except Exception as error:  # noqa: BLE001  # belongs to the tasks that wait, not to this one
            for item in batch:
                item.fail(error)
            return
        except BaseException:
            for item in batch:
                item.fail(CommitAbandoned("closed"))
            raise
        for item, answer in zip(batch, answers, strict=True):
            item.answer = answer
            item.done.set()
