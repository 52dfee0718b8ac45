"""Group commit: what happens at the same time travels together.

While one batch is on its way the next gathers. A lone item goes at once; only under load, where waiting
delays nobody who is alone, a batch may linger a little to become larger.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio

T = TypeVar("T")
R = TypeVar("R")


class _Item(Generic[T, R]):
    __slots__ = ("answer", "done", "error", "value")

    def __init__(self, value: T) -> None:
        self.value = value
        self.done = trio.Event()
        self.answer: R | None = None
        self.error: Exception | None = None


class GroupCommit(Generic[T, R]):
    """Gathers items from many tasks into calls of one function; needs its `run` to be running.

    Args:
        commit: takes items, answers as many results in order; what it raises is raised to all of them.
        max_batch: items in one call at the most.
        linger_s: seconds for which a batch may wait for more, asked anew for each.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        max_batch: int,
        linger_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._commit = commit
        self._max_batch = max_batch
        self._linger_s = linger_s
        self._waiting: dict[_Item[T, R], None] = {}
        self._some = trio.Event()

    @property
    def waiting(self) -> int:
        """Items that no call has taken yet."""
        return len(self._waiting)

    async def submit(self, value: T) -> R:
        """Have `value` committed; answers its result.

        A cancel before its batch leaves withdraws it; after that it is unknown whether it was committed.
        """
        item: _Item[T, R] = _Item(value)
        self._waiting[item] = None
        self._some.set()
        try:
            await item.done.wait()
        finally:
            self._waiting.pop(item, None)
        if item.error is not None:
            # A copy, for each task adds its own traceback to what it raises.
            raise copy.copy(item.error) from item.error
        return item.answer  # type: ignore[return-value]  # set whenever `error` is not

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit batches until cancelled; items that wait then are not committed."""
        task_status.started()
        while True:
            await self._some.wait()
            linger_s = self._linger_s()
            if linger_s > 0 and len(self._waiting) < self._max_batch:
                await trio.sleep(linger_s)
            while self._waiting:
                batch = list(self._waiting)[: self._max_batch]
                for item in batch:
                    del self._waiting[item]
                await self._commit_batch(batch)
            self._some = trio.Event()

    async def _commit_batch(self, batch: Sequence[_Item[T, R]]) -> None:
        try:
            answers = await self._commit([item.value for item in batch])
        except Exception as error:  # noqa: BLE001  # belongs to the tasks that wait, not to this one
            for item in batch:
                item.error = error
                item.done.set()
            return
        for item, answer in zip(batch, answers, strict=True):
            item.answer = answer
            item.done.set()
