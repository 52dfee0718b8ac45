"""The loop: it waits for a free slot before it leases, so a leased job never waits in this process.

`run_workload` owns the tasks that do the work. The tasks that renew leases, commit results and sweep run in
an outer nursery, because they are needed until the work has ended.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from downloader.failpoints import failpoint
from downloader.groupcommit import GroupCommit
from downloader.model import Delivery, Kind, Lease, Outcome, Verdict
from downloader.observe import Event, get_logger
from downloader.scheduler.ends import End, Ended
from downloader.scheduler.leases import Clock, Held, HeldLease, boottime, keep_leases
from downloader.scheduler.limits import Limits
from downloader.scheduler.stop import Stop
from downloader.scheduler.sweep import sweep_leases
from downloader.store import JobStore, Settled, StoreUnavailable

log = get_logger()

LOOK_S = 5.0
"""Longest time between two lease calls. Jobs wait for it only if a wake-up was lost."""

SHARE_LOOK_S = 0.5
"""Time between two checks whether other groups wait, while an aggregation fills the process or is held to its
share. No wake-up is published then, because `ready` is not empty."""

LEASE_BATCH = 64
"""Leases per call at most, so that the other instances get their turn."""

SETTLE_BATCH = 200
"""Settlements per call at most, so that a script takes a few milliseconds."""

BUSY_FROM = 64
"""With this many tasks in flight a call waits `LINGER_S` to carry more; with fewer it goes at once."""

LINGER_S = 0.005
"""Short, compared to the time that a task takes while so many are in flight."""

BACKOFF_S, MAX_BACKOFF_S = 0.1, 0.5
"""Pauses between calls to a store that does not answer. When it is back, a job waits for few of them."""

HAND_BACK_S = 2.0
"""At a stop: how long to ask a silent store for leases whose answer was lost, and how long
after the deadline to go on trying to hand leases back."""

DISCARD_S = 2.0
"""How long the file of a cancelled job may take to be deleted."""

UNWIND_S = 0.2
"""How long cancelled work may take to end after the stop's deadline. Work that waits for a
hung disk does not end; its lease is handed back all the same."""

ABANDONED_DELAY_S = 5.0
"""When a task whose work hangs is due again: after this process, and with it the work, has ended."""

OCCUPIED_DELAY_S = 0.05
"""When a task is due again whose slot in this process is still occupied by its former work."""


class Wake:
    """An event that resets itself, for one waiter. If it is set before the wait, the wait returns at once."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """Wake the waiter, or let its next wait return at once."""
        self._event.set()

    async def wait(self) -> None:
        """Return after one or more `set`, and reset. A cancelled wait does not reset."""
        await self._event.wait()
        self._event = trio.Event()


class Workload(ABC):
    """One kind of leased work, and the functions that are called as it ends."""

    kind: Kind
    concurrency: int
    """How many leases the process holds at most."""
    lease_s: float
    leases_at_stop: bool = False
    """Whether one more call leases what is due when a stop begins."""

    @abstractmethod
    async def work(self, lease: Lease, still_ours: Callable[[], bool]) -> End:
        """Do a lease's work. Expected failures are returned; an exception ends the process.

        It is cancelled when the lease is lost, at a stop's deadline, and when other groups wait for the slot.
        `still_ours` says whether the lease is still valid; thread-safe.
        """

    @abstractmethod
    async def settle(self, results: Sequence[Ended]) -> Sequence[Settled]:
        """Report to the store how work ended; returns the results in order."""

    @abstractmethod
    def ended(self, lease: Lease, end: End, seconds: float) -> None:
        """Called for each settled lease: how its work ended, and how long it took."""

    async def discard(self, lease: Lease) -> None:
        """Called for each lease whose job was cancelled: delete what its work may have stored.

        It has `DISCARD_S`, so that it holds up no stop; the reaper deletes what is left with the job.
        """
        del lease

    def may_lease(self) -> bool:
        """False while nothing should be leased (a full disk). Called before each lease call."""
        return True

    def lost(self) -> None:
        """Called for each lease that ended before its work was settled."""
        return

    def swept(self, count: int) -> None:
        """Called after a sweep with the number of tasks that it has taken from dead instances."""
        del count


@dataclass(slots=True, kw_only=True)
class _Running:
    """What the tasks of one workload share."""

    store: JobStore
    workload: Workload
    owner: str
    wake: Wake
    stop: Stop
    clock: Clock
    limits: Limits
    commit: GroupCommit[Ended, Settled]
    held: Held
    services: trio.Nursery
    room: Wake = field(default_factory=Wake)

    @property
    def free(self) -> int:
        return self.workload.concurrency - len(self.held)

    def stop_begins(self) -> None:
        """Bound the work in flight, and wake the task that leases."""
        for held in self.held:
            held.work.deadline = self.stop.deadline
        self.wake.set()
        self.room.set()


async def run_workload(
    store: JobStore,
    workload: Workload,
    *,
    owner: str,
    wake: Wake,
    stop: Stop,
    held: Held | None = None,
    clock: Clock = boottime,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Lease and work until `stop` begins; work in flight then has until the stop's deadline.

    A cancel ends the work in flight and hands nothing back: other instances take over when the leases end.

    Args:
        store: where the leases come from.
        workload: what to do with them.
        owner: this instance's name in the store; one call per owner and kind.
        wake: set whenever something may have become runnable.
        stop: ends leasing when it begins, and the work at its deadline.
        held: empty; holds the leases in flight while it runs, for others to count.
        clock: by which leases end.
        task_status: started when leasing begins.
    """
    held = {} if held is None else held
    commit: GroupCommit[Ended, Settled] = GroupCommit(
        workload.settle,
        max_batch=SETTLE_BATCH,
        linger_s=lambda: LINGER_S if len(held) >= BUSY_FROM else 0.0,
    )
    renew = partial(keep_leases, clock=clock)
    async with trio.open_nursery() as services:
        running = _Running(
            store=store,
            workload=workload,
            owner=owner,
            wake=wake,
            stop=stop,
            clock=clock,
            limits=Limits(workload.kind, workload.concurrency),
            commit=commit,
            held=held,
            services=services,
        )
        stop.on_begin(running.stop_begins)
        services.start_soon(commit.run)
        services.start_soon(renew, store, workload.kind, owner, held.keys(), workload.lease_s)
        services.start_soon(sweep_leases, store, workload.kind, workload.lease_s, workload.swept)
        services.start_soon(_hand_back_hung, running)
        async with trio.open_nursery() as tasks:
            task_status.started()
            await _lease(running, tasks)
        services.cancel_scope.cancel()


async def _lease(running: _Running, tasks: trio.Nursery) -> None:
    """Lease until the stop begins, then ask for leases whose answer was lost."""
    workload = running.workload
    backoff_s = BACKOFF_S
    while not running.stop.begun:
        if running.free < 1:
            await _wait_for_room(running)
            continue
        if not workload.may_lease():
            await _look_again(running.wake, LOOK_S)
            continue
        if running.free < workload.concurrency // 8 and len(running.held) >= BUSY_FROM:
            await trio.sleep(LINGER_S)
        answered, next_due_s = await _take(running, tasks, min(running.free, LEASE_BATCH))
        if not answered:
            await _look_again(running.wake, _jittered(backoff_s))
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            continue
        backoff_s = BACKOFF_S
        if next_due_s != 0:
            held_back = running.limits.shares(trio.current_time()).never
            longest_s = SHARE_LOOK_S if held_back else LOOK_S
            await _look_again(running.wake, longest_s if next_due_s is None else min(next_due_s, longest_s))
    if workload.leases_at_stop and running.free > 0:
        await _take(running, tasks, min(running.free, LEASE_BATCH))
    # Ask for leases whose answer was lost; the work of each ends at once, and it is handed back.
    give_up_at = trio.current_time() + HAND_BACK_S
    answered = False
    while not answered and trio.current_time() < give_up_at:
        answered, _ = await _take(running, tasks, 0)
        if not answered:
            await trio.sleep(_jittered(BACKOFF_S))


async def _take(running: _Running, tasks: trio.Nursery, count: int) -> tuple[bool, float | None]:
    """Lease up to `count` and start on them; whether the store answered, and `LeaseBatch.next_due_s`."""
    workload = running.workload
    shares = running.limits.shares(trio.current_time())
    asked_at = running.clock()
    try:
        batch = await running.store.lease(
            workload.kind, running.owner, count, workload.lease_s, shares=shares
        )
    except StoreUnavailable as error:
        log.warning(Event.STORE_UNAVAILABLE, kind=workload.kind, reason=str(error))
        return False, None
    for lease in batch.leases:
        failpoint("after-lease")
        held = HeldLease(
            lease,
            asked_at=asked_at,
            lease_s=workload.lease_s,
            clock=running.clock,
            work_until=running.stop.deadline,
        )
        running.held[held] = None
        tasks.start_soon(_run_one, running, held, running.limits.enter(held))
    return True, batch.next_due_s


async def _wait_for_room(running: _Running) -> None:
    """Wait for a free slot. If a group has more than its share while others wait, cancel the excess."""
    with trio.move_on_after(_jittered(SHARE_LOOK_S if running.limits.too_large() else math.inf)):
        await running.room.wait()
        return
    group = running.limits.too_large()
    if group is None or running.free > 0:
        return
    try:
        others = await running.store.waiting(running.workload.kind, without=[group])
    except StoreUnavailable as error:
        log.warning(Event.STORE_UNAVAILABLE, kind=running.workload.kind, reason=str(error))
        return
    if others and not running.stop.begun:
        for held in running.limits.leases_beyond_share(group, others, running.held, trio.current_time()):
            held.work.cancel()


async def _look_again(wake: Wake, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await wake.wait()


async def _run_one(running: _Running, held: HeldLease, entered: bool) -> None:  # noqa: FBT001  # start_soon
    """Work on one lease and settle it; `entered`: whether it has a slot of its group."""
    workload, lease = running.workload, held.lease
    end: End | None = None
    settled = Settled.LEASE_LOST
    try:
        with held.scope:
            end = await _work(running, held, entered)
            held.worked = True
            failpoint("before-complete")
            settled = await _settle(running, (lease, end))
            failpoint("after-complete")
            if settled is Settled.CANCELLED:
                with trio.move_on_after(DISCARD_S):
                    await workload.discard(lease)
        if held.abandoned:
            return
        if end is not None and settled is Settled.DONE:
            workload.ended(lease, end, trio.current_time() - held.started_at)
        elif settled is not Settled.CANCELLED:
            log.warning(Event.LEASE_LOST, kind=lease.kind, job_id=lease.id, aggr_id=lease.spec.aggr_id)
            workload.lost()
            if held.unanswered:
                # The store learns from it that this holder has not died, and counts no crash.
                running.services.start_soon(_settle, running, (lease, _released(lease, "", 0.0)))
    finally:
        del running.held[held]
        running.room.set()


async def _work(running: _Running, held: HeldLease, entered: bool) -> End:  # noqa: FBT001  # as above
    """How the work on a lease ended, or that it is to be handed back."""
    lease = held.lease
    if not entered:
        return _released(lease, "its slot is still being cleared", OCCUPIED_DELAY_S)
    end: End | None = None
    try:
        if not running.stop.over:
            with held.work:
                end = await running.workload.work(lease, held.still_ours)
    finally:
        # Before it is settled, because then the store grants the slot again, perhaps to this process.
        if running.limits.leave(held):
            running.wake.set()
    return end or _released(lease, "", 0.0)


async def _hand_back_hung(running: _Running) -> None:
    """At a stop, hand back work that does not end although it was cancelled: it is stuck in a thread."""
    await running.stop.wait()
    await trio.sleep_until(running.stop.deadline + UNWIND_S)
    async with trio.open_nursery() as nursery:
        for held in running.held:
            if not held.worked:
                held.abandoned = True
                held.lose()  # from now on the thread publishes nothing
                nursery.start_soon(_abandon, running, held)


async def _abandon(running: _Running, held: HeldLease) -> None:
    end = _released(held.lease, "its work hangs", ABANDONED_DELAY_S)
    if await _settle(running, (held.lease, end)) is Settled.DONE:
        running.workload.ended(held.lease, end, trio.current_time() - held.started_at)


def _released(lease: Lease, reason: str, delay_s: float) -> End:
    kind = Outcome if lease.kind is Kind.DOWNLOAD else Delivery
    return kind(verdict=Verdict.RELEASE, error=reason, retry_after_s=delay_s)


async def _settle(running: _Running, result: Ended) -> Settled:
    """Settle as soon as the store answers; `UNKNOWN` if a stop cannot wait for that.

    The result of work is cancelled when the lease ends, because then the store would refuse it.
    """
    backoff_s = BACKOFF_S
    while True:
        settled = await running.commit.submit(result)
        gives_up = trio.current_time() >= running.stop.deadline + HAND_BACK_S
        if settled is not Settled.UNKNOWN or gives_up:
            return settled
        await trio.sleep(_jittered(backoff_s))
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1)  # noqa: S311  # jitter, not a secret
