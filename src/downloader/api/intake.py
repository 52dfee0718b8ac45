"""Submission of jobs to the store in batches, within a budget of memory."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from downloader.groupcommit import CommitAbandoned, GroupCommit
from downloader.observe import API_COUNTERS, Counters, Event, get_logger
from downloader.store import Accepted, JobStore, StoreError, StoreUnavailable, Submission

SINGLE_PATH, BULK_PATH = "/download", "/downloads"
"""The routes that take jobs: one, or many."""

MAX_BATCH = 500
"""Jobs in one call: about 200 KB and 10 ms of the store's time."""

MAX_EXTRA = 1024**2
"""Most characters of `extra`, the only long field, in one call: while the store hangs, the Python objects and
buffers of a call take many times as much memory."""

MAX_WAITING = 5000
"""Most jobs that wait for a call: ten calls."""

MAX_BYTES = 64 * 1024**2
"""Most received bytes of requests in progress; one client may have half of the bytes. While the store hangs,
the process uses a few times as much memory."""

WAIT_S = 10.0
"""Time limit of one call, in seconds: twice the default of `redis.timeout`. When a call exceeds the limit,
the jobs that wait for the next call fail too."""


class Intake:
    """Submits the jobs of many tasks; `submit` needs `run` to be running."""

    def __init__(self, store: JobStore, counters: Counters | None = None) -> None:
        self._commit: GroupCommit[Submission, tuple[Accepted, str]] = GroupCommit(
            self._take_singles,
            max_batch=MAX_BATCH,
            weight=_extra,
            max_weight=MAX_EXTRA,
            lane_errors=StoreError,
        )
        self._store = store
        self._counters = counters or Counters(API_COUNTERS)
        self._log = get_logger().bind()  # once: binding for each job costs too much
        self._bytes: Counter[str] = Counter()
        """Received bytes by client; the bytes of all clients under an empty name."""

    async def _take_singles(self, batch: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        with trio.move_on_after(WAIT_S):
            return await self._take(SINGLE_PATH, batch)
        raise StoreUnavailable("the store did not take the jobs in time")

    async def _take(self, route: str, batch: Sequence[Submission]) -> Sequence[tuple[Accepted, str]]:
        results = await self._store.submit(batch)
        self._counters.add("jobs_accepted", sum(why is Accepted.NEW for why, _ in results), route)
        for item, (why, job_id) in zip(batch, results, strict=True):
            if why in (Accepted.NEW, Accepted.REPEATED):
                repeated = why is Accepted.REPEATED
                self._log.debug(
                    Event.JOB_ACCEPTED, job_id=job_id, aggr_id=item.spec.aggr_id, repeated=repeated
                )
        return results

    @contextmanager
    def room(self, client: str) -> Iterator[Callable[[int], None]]:
        """Account for the memory of one request; `client` is an address, empty if unknown.

        Yields:
            A function to call with the number of bytes that are kept of the body, each time that it changes.
            It raises `StoreUnavailable` if all requests, or those of this client, exceed their limit.
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
        """Submit one job, in one call with others that arrive meanwhile; returns the store's result.

        After a cancel or an error the store may have accepted the job all the same.

        Raises:
            StoreUnavailable: the store cannot take the job now, or too many wait.
            StoreRefused: the store will never carry out the call, see `JobStore`.
        """
        if self._commit.waiting >= MAX_WAITING:
            raise StoreUnavailable("too many jobs wait for the store")
        try:
            return await self._commit.submit(submission)
        except CommitAbandoned:
            raise StoreUnavailable("the service is stopping") from None

    async def submit_all(
        self, submissions: Sequence[Submission]
    ) -> Sequence[tuple[Accepted, str] | StoreError]:
        """Submit the jobs of one request, at most `MAX_BATCH`, in one call; returns the results in order.

        A job without a result of the store has the error instead. After an error or a cancel the store may
        have accepted the job all the same.
        """
        try:
            return await self._take(BULK_PATH, submissions)
        except StoreError as error:
            return [error] * len(submissions)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make the calls for `submit` until cancelled."""
        await self._commit.run(task_status=task_status)


def memory_of(submission: Submission) -> int:
    """Bytes that `extra` takes in memory: up to four per character."""
    return sys.getsizeof(submission.spec.extra)


def _extra(submission: Submission) -> int:
    return len(submission.spec.extra)
