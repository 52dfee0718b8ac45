"""Jobs that arrive together go to the store in one round trip; a lone job goes at once."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from downloader.groupcommit import GroupCommit
from downloader.store import Accepted, JobStore, StoreUnavailable, Submission

MAX_BATCH = 500
"""Jobs in one round trip: about 200 KB and 10 ms of the store's time, which others also wait for."""

MAX_WAITING = 5000
"""Jobs that wait. More than a store under full load takes in `WAIT_S` is better refused at once."""

WAIT_S = 10.0
"""How long one job may wait; twice the default bound of a call to the store."""


class Intake:
    """Takes jobs in from many tasks at once; needs its `run` to be running."""

    def __init__(self, store: JobStore) -> None:
        self._commit: GroupCommit[Submission, tuple[Accepted, str]] = GroupCommit(
            self._take, max_batch=MAX_BATCH
        )
        self._store = store

    async def _take(self, batch: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        return await self._store.submit(batch)

    async def submit(self, submission: Submission) -> tuple[Accepted, str]:
        """Hand one job to the store; answers as `JobStore.submit` does for it.

        A cancel ends this wait only: a job that is on its way to the store may be taken in.

        Raises:
            StoreUnavailable: the store cannot take it now, too many wait, or it waited too long (then it
                may have been taken in all the same, as with every failure of the store).
            StoreRefused: the store refuses us.
        """
        if self._commit.waiting >= MAX_WAITING:
            raise StoreUnavailable("too many jobs wait for the store")
        with trio.move_on_after(WAIT_S):
            return await self._commit.submit(submission)
        raise StoreUnavailable("the store did not take the job in time")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bring jobs to the store until cancelled; a cancel leaves those that wait without an answer."""
        await self._commit.run(task_status=task_status)
