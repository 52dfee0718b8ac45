"""The end of a job: the file is deleted, then the record; and what is due for groups of jobs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from downloader.errors import StorageError
from downloader.model import JobSpec
from downloader.observe import Event, get_logger
from downloader.scheduler.events import Stop
from downloader.store import JobStore, Reapable, StoreUnavailable

log = get_logger()

REAP_BATCH = 200

HOLD_S = 300.0
"""How long a job is reserved for a reaper. By then the reaper has removed the job, or has died."""

LOOK_S = 5.0
"""Longest sleep. A job may become due during the sleep; the delay does no harm."""

DELETIONS = 8
"""Concurrent deletions: few, so that downloads have most of the disk."""

DELETION_S = 60.0
"""Time limit of a deletion, so that a hanging plugin does not stop the deletions of other jobs."""


Delete = Callable[[JobSpec, Sequence[str]], Awaitable[None]]
"""`(job, digests of shared files)` -> deletes the job's file, and the shared files that no other job has."""


async def run_reaper(store: JobStore, delete: Delete, *, stop: Stop) -> None:
    """Delete jobs that are due until `stop` begins; the current batch may run until the stop's deadline.

    A `StorageError` is logged, and the job is tried again later. Jobs that are
    not removed by the deadline are returned to a reaper again after `HOLD_S`. Deleting a file twice is
    harmless.
    """
    with trio.CancelScope(deadline=stop.deadline) as scope:

        def end_in_time() -> None:
            scope.deadline = stop.deadline

        stop.on_begin(end_in_time)
        while not stop.begun:
            wait_s = await _reap(store, delete)
            with trio.move_on_after(wait_s):
                await stop.wait()


async def delete_file(spec: JobSpec, digests: Sequence[str], delete: Delete) -> bool:
    """Delete a job's files within a time limit; logs an error, and returns whether the files were deleted."""
    try:
        with trio.fail_after(DELETION_S):
            await delete(spec, digests)
    except (StorageError, trio.TooSlowError) as error:
        reason = str(error) or f"not deleted within {DELETION_S:g} s"
        log.warning(Event.FILE_UNDELETABLE, job_id=spec.id, reason=reason)
        return False
    log.debug(Event.FILE_DELETED, job_id=spec.id, aggr_id=spec.aggr_id)
    return True


async def _reap(store: JobStore, delete: Delete) -> float:
    """Delete a batch; returns the seconds until the next batch."""
    try:
        batch = await store.reap(REAP_BATCH, HOLD_S)
        if batch.groups:
            await store.tend_groups(batch.groups)
        job_ids = await _delete(batch.jobs, delete)
        if job_ids:
            await store.remove(job_ids)
    except StoreUnavailable:
        return LOOK_S
    return LOOK_S if batch.next_due_s is None else min(batch.next_due_s, LOOK_S)


async def _delete(jobs: Sequence[Reapable], delete: Delete) -> Sequence[str]:
    job_ids: list[str] = []
    limiter = trio.CapacityLimiter(DELETIONS)

    async def delete_one(job: Reapable) -> None:
        async with limiter:
            has_none = not job.has_file and not job.digests
            if has_none or await delete_file(job.spec, job.digests, delete):
                job_ids.append(job.spec.id)

    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(delete_one, job)
    return job_ids
