"""The loop that leases tasks: first wait for a free slot, then lease, so a leased task never waits.

`run_work` owns the tasks that do the work. The tasks that renew leases, commit results and sweep run in an
outer nursery, because they are needed until the work has ended.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial

import trio

from downloader.backoff import jittered
from downloader.groupcommit import GroupCommit
from downloader.model import Lease, Verdict
from downloader.observe import Event, get_logger
from downloader.scheduler.events import Arrivals, Lingering, Stop, Wake
from downloader.scheduler.leases import Clock, Held, HeldLease, boottime, keep_leases, sweep_leases
from downloader.scheduler.limits import Limits
from downloader.scheduler.work import LeaseEnd, Work
from downloader.signals import failpoint
from downloader.store import LOOK_S, JobStore, LeaseRequests, Settled, Settlement, StoreUnavailable

log = get_logger()

SHARE_LOOK_S = 0.5
"""Time between two checks for waiting queues, while an aggregation has more than its share or is capped at
its share. The instance must check, because the store wakes instances last that left work to others."""

LEASE_BATCH = 64
"""Most leases per call, so that other instances get a turn."""

SETTLE_BATCH = 100
"""Most settlements per call, so that a call of the script takes a few milliseconds."""

BUSY_FROM = 64
"""With at least this many tasks in flight, calls linger: they wait `LINGER_S`, so that each carries more."""

LINGER_S = 0.005
"""Short, compared to the duration of a task with `BUSY_FROM` tasks in flight."""

FEW_SLOTS = range(BUSY_FROM, 2 * LEASE_BATCH + 1)
"""With so many slots, a busy process is nearly full. While tasks wait for its slots, calls that linger and
calls that all slots wait for cost much of the rate."""

STEADY_PER_S = 40.0
"""With more leases a second, calls linger for `STEADY_LINGER_S` even if few tasks are in flight."""

STEADY_LINGER_S = 0.005
"""Short, compared to the time that a POST and the callback take together."""

URGENT_S = 0.05
"""Time without lingering after a queue at its limit got a free slot. Longer than it takes to settle a task
and to lease the queue's next task."""

BACKOFF_S, MAX_BACKOFF_S = 0.1, 0.5
"""Shortest and longest pause between calls to a store that does not answer. Short, so that jobs start soon
after the store is back."""

HAND_BACK_S = 2.0
"""At a stop: how long to ask a silent store for leases after a lost answer, and how long after the deadline
to try to hand leases back."""

DISCARD_S = 2.0
"""Time limit for deleting the file of a cancelled job."""

UNWIND_S = 0.2
"""How long cancelled work may take to end after the stop's deadline. Then the leases are handed back, also of
work that does not end because the disk hangs."""

ABANDONED_DELAY_S = 5.0
"""Delay of a task with hung work: by then this process has ended, and the work too."""

OCCUPIED_DELAY_S = 0.05
"""Delay of a task that cannot start because earlier work on the task still occupies the slot."""


@dataclass(slots=True, kw_only=True)
class _Running:
    """State of a running `run_work`.

    `_lease` adds leases to `held`; the task that ends a lease removes it and sets `room`. `wake` and `room`
    have one waiter, the task that leases.
    """

    store: JobStore
    work: Work
    owner: str
    wake: Wake
    stop: Stop
    clock: Clock
    limits: Limits
    commit: GroupCommit[Settlement, Settled]
    held: Held
    room: Wake = field(default_factory=Wake)
    requests: LeaseRequests = field(default_factory=LeaseRequests)
    leased: Arrivals = field(default_factory=Arrivals)
    lingering: Lingering = field(default_factory=Lingering)
    urgent_until: float = -math.inf
    """No call lingers until this Trio time, because a queue at its limit has got a free slot."""
    more: bool = False
    """Whether more tasks could run when the last lease call was answered."""

    @property
    def free(self) -> int:
        return self.work.concurrency - len(self.held)

    @property
    def scarce(self) -> bool:
        """Whether tasks wait for the slots, and the slots are few."""
        return self.more and self.work.concurrency in FEW_SLOTS

    @property
    def most_leases(self) -> int:
        """Most leases of the next call."""
        if self.scarce:
            # One half of the slots works while the store serves the other half.
            return min(self.free, self.work.concurrency // 2)
        return min(self.free, LEASE_BATCH)

    @property
    def linger_s(self) -> float:
        """How long a call lingers, so that one call carries more."""
        if self.scarce:
            return 0.0
        if len(self.held) >= BUSY_FROM:
            return LINGER_S
        if self.lingering.pays and trio.current_time() > self.urgent_until:
            return STEADY_LINGER_S if self.leased.per_s() > STEADY_PER_S else 0.0
        return 0.0

    def stop_begins(self) -> None:
        """Bound the work in flight, and wake the leasing task."""
        for held in self.held:
            held.stop(self.stop.deadline)
        self.wake.set()
        self.room.set()


WorkUnder = Callable[[_Running, HeldLease], Awaitable[Settlement | None]]
"""Works under a lease; returns the settlement, if any."""

Start = Callable[[HeldLease, WorkUnder], object]
"""Starts a task for a lease."""


async def run_work(
    store: JobStore,
    work: Work,
    *,
    owner: str,
    wake: Wake,
    stop: Stop,
    held: Held | None = None,
    clock: Clock = boottime,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Lease and work until `stop` begins; work in flight may then run until the stop's deadline.

    A cancel ends the work in flight without handing back: other instances take over when the leases end.

    Args:
        store: where the leases come from.
        work: what to do with the leases.
        owner: this instance's name in the store; only one call per owner and kind.
        wake: set whenever a task may have become runnable.
        stop: ends leasing when it begins, and the work at its deadline.
        held: an empty dict, which gets the leases in flight, for the caller to count.
        clock: decides when leases end.
        guard: a context around the leasing. It ends with an exception as soon as any task raises, even if
            other tasks hang.
        task_status: started when leasing begins.
    """
    held = {} if held is None else held
    renew = partial(keep_leases, clock=clock)
    async with trio.open_nursery() as services:
        running = _Running(
            store=store,
            work=work,
            owner=owner,
            wake=wake,
            stop=stop,
            clock=clock,
            limits=Limits(work.kind, work.concurrency),
            commit=GroupCommit(
                partial(store.settle, owner),
                max_batch=SETTLE_BATCH,
                linger_s=lambda: running.linger_s,
            ),
            held=held,
        )
        stop.on_begin(running.stop_begins)
        services.start_soon(running.commit.run)
        services.start_soon(renew, store, work.kind, owner, held.keys(), work.lease_s)
        services.start_soon(sweep_leases, store, work.kind, work.lease_s, work.on_sweep)
        services.start_soon(_hand_back_hung, running)
        async with trio.open_nursery() as tasks:

            def start(held: HeldLease, work_under: WorkUnder) -> None:
                tasks.start_soon(_run_one, running, services, held, work_under)

            task_status.started()
            with guard():
                await _lease(running, start)
                await _take_unanswered(running, start)
        services.cancel_scope.cancel()


async def _lease(running: _Running, start: Start) -> None:
    """Lease until the stop begins."""
    work = running.work
    backoff_s = BACKOFF_S
    while not running.stop.begun:
        if running.free < 1:
            await _wait_for_room(running)
            continue
        if not work.may_lease():
            await _withdraw(running)
            running.wake.take()
            await running.wake.wait_for(LOOK_S)
            continue
        lingered = await _linger(running)
        answered, look_s = await _take(
            running, start, running.most_leases, room=running.free, lingered=lingered
        )
        running.more = look_s == 0
        if not answered:
            await running.wake.wait_for(jittered(backoff_s))
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            continue
        backoff_s = BACKOFF_S
        if look_s != 0 and not running.stop.begun:
            if running.limits.shares(trio.current_time()).leaves_out:
                running.wake.set(SHARE_LOOK_S)
            await running.wake.wait_for(LOOK_S if look_s is None else look_s)
    if work.leases_at_stop and running.free > 0:
        await _take(running, start, min(running.free, LEASE_BATCH))
    await _withdraw(running)


async def _linger(running: _Running) -> bool:
    """Linger before a lease call, unless more tasks can run at once; returns whether the call lingered."""
    busy = len(running.held) >= BUSY_FROM
    if busy and running.free >= running.work.concurrency // 8:
        return False
    if running.linger_s > 0 and (busy or not running.more):
        await trio.sleep(running.linger_s)
        return True
    return False


async def _take_unanswered(running: _Running, start: Start) -> None:
    """At a stop, ask again for the leases of a call whose answer was lost; the leases are handed back."""
    give_up_at = trio.current_time() + HAND_BACK_S
    answered = False
    while not answered and trio.current_time() < give_up_at:
        answered, _ = await _take(running, start, 0)
        if not answered:
            await trio.sleep(jittered(BACKOFF_S))


async def _withdraw(running: _Running) -> None:
    """Let the store wake other instances, because this instance leases nothing for now."""
    with suppress(StoreUnavailable):
        await running.store.withdraw(
            running.work.kind, running.owner, running.work.types, requests=running.requests
        )


async def _take(
    running: _Running, start: Start, count: int, room: int = 0, *, lingered: bool = False
) -> tuple[bool, float | None]:
    """Lease and start up to `count` tasks.

    Returns whether the store answered, and `LeaseBatch.look_s`.
    """
    work = running.work
    shares = running.limits.shares(trio.current_time())
    asked_at = running.clock()
    try:
        batch = await running.store.lease(
            work.kind,
            running.owner,
            count,
            work.lease_s,
            shares=shares,
            requests=running.requests,
            room=room,
            woken=running.wake.take(),
            types=work.types,
        )
    except StoreUnavailable:
        return False, None
    if batch.leases:
        running.leased.add(len(batch.leases))
        running.lingering.note(len(batch.leases), lingered=lingered)
    for lease in batch.leases:
        failpoint("after-lease")
        held = HeldLease(
            lease,
            asked_at=asked_at,
            lease_s=work.lease_s,
            longest_s=work.longest_s(lease),
            clock=running.clock,
            work_until=running.stop.deadline,
        )
        running.held[held] = None
        start(held, _work if running.limits.enter(held) else _refuse)
    return True, batch.look_s


async def _wait_for_room(running: _Running) -> None:
    """Wait for a free slot; cancel the newest work of a holder with more than its share while others wait."""
    with trio.move_on_after(jittered(SHARE_LOOK_S if running.limits.too_large() else math.inf)):
        await running.room.wait()
        return
    holder = running.limits.too_large()
    if holder is None or running.free > 0:
        return
    holder_type, name = holder
    try:
        others = await running.store.waiting(running.work.kind, **{holder_type: name})
    except StoreUnavailable:
        return
    if others and not running.stop.begun:
        for held in running.limits.leases_beyond_share(holder, others, running.held, trio.current_time()):
            held.work.cancel()


async def _run_one(running: _Running, services: trio.Nursery, held: HeldLease, work: WorkUnder) -> None:
    """Work under a lease, settle and report, unless `_hand_back_hung` has reported already.

    A settlement that the store has not answered in time is repeated in `services`, which a stop cancels.
    """
    end = LeaseEnd.LOST
    try:
        held.settlement = await work(running, held)
        if held.settlement is not None:
            failpoint("before-complete")
            end = await _settle(running, held.settlement, held)
            failpoint("after-complete")
            if end is LeaseEnd.CANCELLED:
                await _discard(running, held.lease)
        if held not in running.held:
            return
        if end is LeaseEnd.LOST and held.unanswered:
            services.start_soon(_settle_late, running, held)
        else:
            _report(running, held, end, held.settlement)
    finally:
        running.held.pop(held, None)
        running.room.set()


async def _work(running: _Running, held: HeldLease) -> Settlement | None:
    """Do the work of a lease that has a slot; the lease of cancelled work is handed back.

    `None` if the lease ended before the work.
    """
    settlement = None
    try:
        if not running.stop.over:
            with held.work:
                settlement = await running.work.work(held.lease, held.still_ours)
    finally:
        if running.limits.full(held):
            running.urgent_until = trio.current_time() + URGENT_S
        # Leave before the settlement: after it, the store may grant the slot to this process again.
        if running.limits.leave(held):
            running.wake.set()
    if settlement is None:
        return None if held.ended else _released(held.lease)
    if running.limits.note_result(settlement, trio.current_time()):
        running.wake.set()
    return settlement


async def _refuse(_: _Running, held: HeldLease) -> Settlement:
    """Hand back a lease that got no slot."""
    return _released(held.lease, "its slot is still being cleared", OCCUPIED_DELAY_S)


async def _settle_late(running: _Running, held: HeldLease) -> None:
    """Settle when the store answers again, after a lease ended while the store did not answer.

    The settlement is repeated, because perhaps only the answer was lost. If the store has not applied the
    settlement, or if the work was cancelled, the lease is released. So the store learns that the holder has
    not died, and counts no crash.
    """
    end, settlement = LeaseEnd.LOST, held.settlement
    try:
        if settlement is not None:
            end = await _settle(running, settlement)
    finally:
        _report(running, held, end, settlement)
    if end is LeaseEnd.LOST:
        await _settle(running, _released(held.lease))
    elif end is LeaseEnd.CANCELLED:
        await _discard(running, held.lease)


async def _hand_back_hung(running: _Running) -> None:
    """At a stop, hand back leases of work that does not end after a cancel because a thread hangs."""
    await running.stop.wait()
    await trio.sleep_until(running.stop.deadline + UNWIND_S)
    async with trio.open_nursery() as nursery:
        for held in list(running.held):
            if held.settlement is None:
                del running.held[held]
                held.lose()  # from now on the thread publishes nothing
                nursery.start_soon(_abandon, running, held)


async def _abandon(running: _Running, held: HeldLease) -> None:
    settlement = _released(held.lease, "its work hangs", ABANDONED_DELAY_S)
    _report(running, held, await _settle(running, settlement), settlement)


def _released(lease: Lease, reason: str = "", delay_s: float = 0.0) -> Settlement:
    return Settlement(lease=lease, verdict=Verdict.RELEASE, error=reason, delay_s=delay_s)


def _report(running: _Running, held: HeldLease, end: LeaseEnd, settlement: Settlement | None) -> None:
    lease = held.lease
    if end is LeaseEnd.LOST:
        log.warning(Event.LEASE_LOST, kind=lease.kind, job_id=lease.id, aggr_id=lease.spec.aggr_id)
    running.work.on_end(end, settlement or _released(lease), trio.current_time() - held.started_at)


async def _discard(running: _Running, lease: Lease) -> None:
    if running.work.discard is not None:
        with trio.move_on_after(DISCARD_S):
            await running.work.discard(lease)


async def _settle(running: _Running, settlement: Settlement, held: HeldLease | None = None) -> LeaseEnd:
    """Settle as soon as the store answers; `LOST` also if a stop cannot wait that long.

    For the result of work, also if the lease of `held` ends first, because the store would refuse a later
    settlement.
    """
    backoff_s = BACKOFF_S
    while True:
        match await running.commit.submit(settlement):
            case Settled.DONE:
                return LeaseEnd.SETTLED
            case Settled.CANCELLED:
                return LeaseEnd.CANCELLED
            case Settled.LEASE_LOST:
                return LeaseEnd.LOST
        if trio.current_time() >= running.stop.deadline + HAND_BACK_S or (held is not None and held.ended):
            return LeaseEnd.LOST
        await trio.sleep(jittered(backoff_s))
        backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
