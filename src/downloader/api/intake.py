"""Jobs that arrive together go to the store in one round trip; a lone job goes at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from downloader.groupcommit import CommitAbandoned, GroupCommit
from downloader.observe import Event, get_logger
from downloader.store import Accepted, JobStore, StoreError, StoreUnavailable, Submission

MAX_BATCH = 500
"""Jobs in one round trip: about 200 KB and 10 ms of the store's time, which others also wait for."""

MAX_EXTRA = 1024**2
"""Characters of `extra` in one round trip, the only field that can be long: while the store hangs, a call has
many times as much in memory, in Python's objects and in buffers."""

MAX_WAITING = 5000
"""Jobs that wait. More than a store under full load takes in `WAIT_S` is better refused at once."""

MAX_BYTES = 64 * 1024**2
"""Of all bodies that have arrived, whole or not, and are not answered: what a store that hangs may make the
process keep, a few times over. One client's may be half of it."""

WAIT_S = 10.0
"""How long one job may wait; twice the default bound of a call to the store."""


class Intake:
    """Takes jobs in from many tasks at once; needs its `run` to be running."""

    def __init__(self, store: JobStore) -> None:
        self._commit: GroupCommit[Submission, tuple[Accepted, str]] = GroupCommit(
            self._take, max_batch=MAX_BATCH, weight=_extra, max_weight=MAX_EXTRA
        )
        self._store = store
        self._log = get_logger().bind()  # once: to bind for each job costs more than what it does not print
        self._bytes: Counter[str] = Counter()
        """Of bodies that are kept, by client; those of all under an empty name."""

    async def _take(self, batch: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        answers = await self._store.submit(batch)
        for item, (why, job_id) in zip(batch, answers, strict=True):
            if why in (Accepted.NEW, Accepted.REPEATED):
                repeated = why is Accepted.REPEATED
                self._log.debug(
                    Event.JOB_ACCEPTED, job_id=job_id, aggr_id=item.spec.aggr_id, repeated=repeated
                )
        return answers

    @contextmanager
    def room(self, client: str) -> Iterator[Callable[[int], None]]:
        """For the body of one request of this client (an address; empty: nobody in particular).

        Yields a function to call with each number of bytes that are kept of it now. It raises
        `StoreUnavailable` when too many are kept already.
        """
        kept = 0

        def keep(size: int) -> None:
            nonlocal kept
            more = size - kept
            if more > 0 and (
                self._bytes[""] + more > MAX_BYTES or (client and self._bytes[client] + more > MAX_BYTES // 2)
            ):
                raise StoreUnavailable("too many bytes of jobs wait for the store")
            kept = size
            for name in {client, ""}:
                self._bytes[name] += more
                if not self._bytes[name]:
                    del self._bytes[name]

        try:
            yield keep
        finally:
            keep(0)

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
            try:
                return await self._commit.submit(submission)
            except CommitAbandoned:
                raise StoreUnavailable("the service is stopping") from None
        raise StoreUnavailable("the store did not take the job in time")

    async def submit_all(
        self, submissions: Sequence[Submission]
    ) -> Sequence[tuple[Accepted, str] | StoreError]:
        """Hand jobs to the store that have arrived together; answers in order.

        A cancel ends this wait only. In place of an answer stands why the store did not give one; then the
        job may have been taken in all the same.
        """
        answers: list[tuple[Accepted, str] | StoreError] = []
        try:
            for start in range(0, len(submissions), MAX_BATCH):
                answers += await self._take(submissions[start : start + MAX_BATCH])
        except StoreError as error:
            answers += [error] * (len(submissions) - len(answers))
        return answers

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bring jobs to the store until cancelled; a cancel leaves those that wait without an answer."""
        await self._commit.run(task_status=task_status)


def _extra(submission: Submission) -> int:
    return len(submission.spec.extra)
