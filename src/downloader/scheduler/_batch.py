"""Group commit: what happens at the same time travels together.

While one batch is on its way the next gathers. A lone item goes at once; only under load, where waiting
delays nobody who is alone, a batch lingers a little to become larger.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio

T = TypeVar("T")
R = TypeVar("R")

MAX_BATCH = 200
"""Items in one call, so that one script stays well under a millisecond or two per hundred."""


class _Item(Generic[T, R]):
    __slots__ = ("answer", "error", "event", "value")

    def __init__(self, value: T) -> None:
        self.value = value
        self.event = trio.Event()
        self.answer: R | None = None
        self.error: Exception | None = None


class GroupCommit(Generic[T, R]):
    """Gathers items from many tasks into calls of one function.

    Args:
        commit: takes items, answers as many results in order; what it raises is raised to all of them.
        linger_s: seconds for which a batch may wait for more, asked anew for each.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        linger_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._commit = commit
        self._linger_s = linger_s
        self._waiting: list[_Item[T, R]] = []
        self._some = trio.Event()

    @property
    def waiting(self) -> int:
        """Items that no call has taken yet."""
        return len(self._waiting)

    async def submit(self, value: T) -> R:
        """Have `value` committed; answers its result.

        A cancel leaves it unknown whether it was or will be committed.
        """
        item: _Item[T, R] = _Item(value)
        self._waiting.append(item)
        self._some.set()
        await item.event.wait()
        if item.error is not None:
            raise item.error
        return item.answer  # type: ignore[return-value]  # set whenever `error` is not

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit batches until cancelled; items still waiting then are not committed."""
        task_status.started()
        while True:
            await self._some.wait()
            linger_s = self._linger_s()
            if linger_s > 0 and len(self._waiting) < MAX_BATCH:
                await trio.sleep(linger_s)
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            if not self._waiting:
                self._some = trio.Event()
            await self._commit_batch(batch)

    async def _commit_batch(self, batch: Sequence[_Item[T, R]]) -> None:
        try:
            answers = await self._commit([item.value for item in batch])
        except Exception as error:  # noqa: BLE001  # belongs to the tasks that wait, not to this one
            for item in batch:
                item.error = error
                item.event.set()
            return
        for item, answer in zip(batch, answers, strict=True):
            item.answer = answer
            item.event.set()
