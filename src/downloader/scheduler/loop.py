"""The loop: room first, leases second, so that a leased job never queues.

Ownership: `run_workload` owns the tasks that do the work, and around them, because they serve these to
their end, the tasks that prolong leases, commit results and sweep after the dead.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from downloader.groupcommit import GroupCommit
from downloader.model import Delivery, Kind, Lease, Outcome, Verdict
from downloader.observe import Event, failpoint, get_logger
from downloader.scheduler.leases import GroupLimiters, Tenure, keep_leases
from downloader.scheduler.settle import End, Settler
from downloader.scheduler.stop import Stop
from downloader.scheduler.wake import Wake
from downloader.store import JobStore, Settled, StoreUnavailable

log = get_logger()

LOOK_S = 5.0
"""Longest sleep without looking: wake-ups are lossy. Jobs do not wait for it unless one was lost."""

LEASE_BATCH = 64
"""Leases per call, so that one instance takes turns with the others."""

SETTLE_BATCH = 200
"""Settlements per call, so that one script stays at a few milliseconds."""

BUSY_FROM = 64
"""Tasks in flight from which a call lingers to carry more; below, somebody may be waiting for it."""

LINGER_S = 0.005
"""Small beside the time that a task spends in flight when so many are."""

SWEEPS_PER_LEASE = 10

BACKOFF_S, MAX_BACKOFF_S = 0.1, 2.0
"""Pauses between calls to a store that does not answer."""

OCCUPIED_DELAY_S = 0.05
"""How long a task waits whose slot in this process is still being cleared by its former work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One kind of leased work and how much of it a process does."""

    kind: Kind
    concurrency: int
    lease_s: float
    work: Callable[[Lease, Callable[[], bool]], Awaitable[End]]
    """Does a lease's work; its second argument tells, from any thread, whether the lease still holds.
    It is cancelled when the lease is lost or a stop's grace is over; expected failures are its answer."""
    settle: Settler
    may_lease: Callable[[], bool] = lambda: True
    """False while nothing should be leased (a full disk); asked every `LOOK_S` and on every wake."""
    looks_once_more: bool = False
    """Whether a stop that has begun still leases what is due then, one call's worth of it."""
    on_end: Callable[[Lease, End, Settled, float], None] = lambda *_: None
    """Told of each settled lease and how many seconds it took."""
    on_lost: Callable[[Lease], None] = lambda _: None
    """Told of each lease that ended before its work."""
    on_swept: Callable[[str], None] = lambda _: None
    """Told of the id of each task taken from a dead instance."""


@dataclass(slots=True, kw_only=True)
class _Running:
    """What the tasks of one workload share."""

    store: JobStore
    workload: Workload
    owner: str
    wake: Wake
    stop: Stop
    room: Wake = field(default_factory=Wake)
    limiters: GroupLimiters = field(default_factory=GroupLimiters)
    tenures: dict[Tenure, None] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.workload.concurrency - len(self.tenures)

    def linger_s(self) -> float:
        return LINGER_S if len(self.tenures) >= BUSY_FROM else 0.0


async def run_workload(
    store: JobStore,
    workload: Workload,
    *,
    owner: str,
    wake: Wake,
    stop: Stop,
    in_flight: Callable[[Callable[[], int]], None] = lambda _: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Lease and work until `stop` begins, then see work in flight to its end or hand it back.

    Args:
        store: where the leases come from.
        workload: what to do with them.
        owner: this instance's name in the store; one call per owner and kind.
        wake: set whenever something may have become runnable.
        stop: ends leasing when it begins, and the work at its deadline.
        in_flight: given a function that tells how many leases are held.
        task_status: told when leasing begins.

    A cancel abandons the work in flight: its leases end by themselves and other instances take over.
    """
    running = _Running(store=store, workload=workload, owner=owner, wake=wake, stop=stop)
    in_flight(lambda: len(running.tenures))
    stop.on_begin(wake.set)
    stop.on_begin(running.room.set)
    commit: GroupCommit[tuple[Lease, End], Settled] = GroupCommit(
        partial(_settle_patiently, workload.settle), max_batch=SETTLE_BATCH, linger_s=running.linger_s
    )
    async with trio.open_nursery() as services:
        services.start_soon(commit.run)
        services.start_soon(
            keep_leases, store, workload.kind, owner, running.tenures.keys(), workload.lease_s
        )
        services.start_soon(_sweep, store, workload)
        services.start_soon(_hand_back, running)
        async with trio.open_nursery() as tasks:
            task_status.started()
            await _lease(running, commit, tasks)
        services.cancel_scope.cancel()


async def _lease(
    running: _Running, commit: GroupCommit[tuple[Lease, End], Settled], tasks: trio.Nursery
) -> None:
    workload, stop = running.workload, running.stop
    backoff_s = BACKOFF_S
    while not stop.begun:
        if running.free < 1:
            await running.room.wait()
            continue
        if not workload.may_lease():
            await _look_again(running.wake, LOOK_S)
            continue
        if running.free < workload.concurrency // 8 and running.linger_s():
            await trio.sleep(LINGER_S)
        try:
            next_due_s = await _take(running, commit, tasks)
        except StoreUnavailable as error:
            log.warning(Event.STORE_UNAVAILABLE, kind=workload.kind, reason=str(error))
            await _look_again(running.wake, backoff_s * random.uniform(0.5, 1))  # noqa: S311  # jitter
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            continue
        backoff_s = BACKOFF_S
        if next_due_s != 0:
            await _look_again(running.wake, min(next_due_s or math.inf, LOOK_S))
    if workload.looks_once_more and running.free:
        try:
            await _take(running, commit, tasks)
        except StoreUnavailable as error:
            log.warning(Event.STORE_UNAVAILABLE, kind=workload.kind, reason=str(error))


async def _take(
    running: _Running, commit: GroupCommit[tuple[Lease, End], Settled], tasks: trio.Nursery
) -> float | None:
    """Lease what there is room for and start on it; answers when to look again, as `LeaseBatch` does."""
    workload = running.workload
    asked_at = time.monotonic()
    batch = await running.store.lease(
        workload.kind, running.owner, min(running.free, LEASE_BATCH), workload.lease_s
    )
    for lease in batch.leases:
        failpoint("after-lease")
        tenure = Tenure(lease, taken_at=asked_at, lease_s=workload.lease_s)
        running.tenures[tenure] = None
        tasks.start_soon(_run_one, running, commit, tenure)
    return batch.next_due_s


async def _look_again(wake: Wake, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await wake.wait()


async def _run_one(
    running: _Running, commit: GroupCommit[tuple[Lease, End], Settled], tenure: Tenure
) -> None:
    workload, lease = running.workload, tenure.lease
    started_at = time.monotonic()
    entered = running.limiters.enter(tenure)
    end: End | None = None
    settled = Settled.LEASE_LOST
    try:
        with tenure.scope:
            if not entered:
                end = _released(lease, "its slot is still being cleared", OCCUPIED_DELAY_S)
            elif tenure.handed_back:
                end = _released(lease, "", 0.0)
            else:
                end = await workload.work(lease, tenure.still_ours)
            failpoint("before-complete")
            settled = await commit.submit((lease, end))
            failpoint("after-complete")
        if tenure.handed_back and settled is Settled.LEASE_LOST:
            # A stop has cut it short: its work, or the settling of a work done, which may be repeated.
            end = end or _released(lease, "", 0.0)
            with tenure.scope:
                settled = await commit.submit((lease, end))
        if end is None or settled is Settled.LEASE_LOST:
            log.warning(Event.LEASE_LOST, kind=lease.kind, job_id=lease.id, aggr_id=lease.spec.aggr_id)
            workload.on_lost(lease)
        else:
            workload.on_end(lease, end, settled, time.monotonic() - started_at)
    finally:
        if entered:
            running.limiters.leave(tenure)
        del running.tenures[tenure]
        running.room.set()


def _released(lease: Lease, reason: str, delay_s: float) -> End:
    kind = Outcome if lease.kind is Kind.DOWNLOAD else Delivery
    return kind(verdict=Verdict.RELEASE, error=reason, retry_after_s=delay_s)


async def _settle_patiently(settle: Settler, results: Sequence[tuple[Lease, End]]) -> Sequence[Settled]:
    """Settle as soon as the store answers. Those whose lease has ended meanwhile are refused by it."""
    backoff_s = BACKOFF_S
    while True:
        try:
            return await settle(results)
        except StoreUnavailable as error:
            log.warning(Event.STORE_UNAVAILABLE, waiting=len(results), reason=str(error))
            await trio.sleep(backoff_s * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


async def _hand_back(running: _Running) -> None:
    """At the stop's deadline end the work in flight; each task then releases its lease."""
    await running.stop.wait_deadline()
    for tenure in list(running.tenures):
        tenure.hand_back()


async def _sweep(store: JobStore, workload: Workload) -> None:
    interval_s = workload.lease_s / SWEEPS_PER_LEASE
    while True:
        # Jitter keeps a fleet that was started at once from sweeping at once.
        await trio.sleep(interval_s * random.uniform(0.5, 1))  # noqa: S311  # jitter, not a secret
        try:
            for job_id in await store.sweep(workload.kind):
                log.warning(Event.SWEEP_RECOVERED, kind=workload.kind, job_id=job_id)
                workload.on_swept(job_id)
        except StoreUnavailable as error:
            log.warning(Event.STORE_UNAVAILABLE, kind=workload.kind, reason=str(error))
