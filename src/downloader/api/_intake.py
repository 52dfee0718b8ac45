"""Group commit: jobs that arrive together go to the store in one round trip.

While one `submit` is on its way the next jobs gather; a lone job goes at once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import trio

from downloader.store import Accepted, JobStore, StoreError, StoreUnavailable, Submission

MAX_BATCH = 500
"""Jobs in one round trip: about 200 KB and 10 ms of the store's time, which others also wait for."""

MAX_WAITING = 5000
"""Jobs that wait. More than a store under full load takes in `WAIT_S` is better refused at once."""

WAIT_S = 10.0
"""How long one job may wait; twice the default bound of a call to the store."""


@dataclass(slots=True, eq=False)
class _Waiter:
    submission: Submission
    done: trio.Event = field(default_factory=trio.Event)
    answer: tuple[Accepted, str] | None = None
    error: StoreError | None = None
    abandoned: bool = False


class Intake:
    """Takes jobs in from many tasks at once; needs its `run` to be running."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._waiting: deque[_Waiter] = deque()
        self._arrived = trio.Event()

    async def submit(self, submission: Submission) -> tuple[Accepted, str]:
        """Hand one job to the store; answers as `JobStore.submit` does for it.

        A cancel ends this wait only: a job that is on its way to the store may be taken in.

        Raises:
            StoreUnavailable: the store cannot take it now, too many wait, or it waited too long (then it
                may have been taken in all the same, as with every failure of the store).
            StoreRefused: the store refuses us.
        """
        if len(self._waiting) >= MAX_WAITING:
            raise StoreUnavailable("too many jobs wait for the store")
        waiter = _Waiter(submission)
        self._waiting.append(waiter)
        self._arrived.set()
        try:
            with trio.move_on_after(WAIT_S):
                await waiter.done.wait()
        finally:
            waiter.abandoned = not waiter.done.is_set()
        if waiter.error is not None:
            raise type(waiter.error)(str(waiter.error)) from waiter.error  # it is not this waiter's alone
        if waiter.answer is None:
            raise StoreUnavailable("the store did not take the job in time")
        return waiter.answer

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bring jobs to the store until cancelled; a cancel leaves those that wait without an answer."""
        task_status.started()
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            while batch := self._next_batch():
                await self._commit(batch)

    def _next_batch(self) -> list[_Waiter]:
        batch: list[_Waiter] = []
        while self._waiting and len(batch) < MAX_BATCH:
            waiter = self._waiting.popleft()
            if not waiter.abandoned:
                batch.append(waiter)
        return batch

    async def _commit(self, batch: list[_Waiter]) -> None:
        try:
            answers = await self._store.submit([waiter.submission for waiter in batch])
        except StoreError as error:
            for waiter in batch:
                waiter.error = error
                waiter.done.set()
            return
        for waiter, answer in zip(batch, answers, strict=True):
            waiter.answer = answer
            waiter.done.set()
