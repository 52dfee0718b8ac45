"""The scheduler alone, on a store in memory, with work that a test controls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
import trio.testing

from downloader.model import Kind, Lease, Verdict
from downloader.scheduler import Held, LeaseEnd, StillOurs, Stop, Wake, Work, run_work
from downloader.store import Settlement
from servers.fake_store import FakeStore

LEASE_S = 30.0
LONGEST_S = 2000.0


class Jobs:
    """Each job works until a test ends the work; then the job succeeds."""

    def __init__(self, kind: Kind, concurrency: int, *, leases_at_stop: bool = False) -> None:
        self.working: dict[str, StillOurs] = {}
        """By job id."""
        self.begun: list[str] = []
        self.cancelled: dict[str, float] = {}
        """Trio time at which the work was cancelled, by job id."""
        self.let_go: set[str] = set()
        self.ends: list[tuple[str, Verdict]] = []
        """Of the leases that were settled."""
        self.losses = 0
        self.discarded: list[str] = []
        self.discard_s = 0.0
        self.open = True
        self._moved = trio.Event()
        self.work = Work(
            kind=kind,
            concurrency=concurrency,
            lease_s=LEASE_S,
            longest_s=lambda _: LONGEST_S,
            work=self.attempt,
            on_end=self.note_end,
            discard=self.discard,
            may_lease=lambda: self.open,
            leases_at_stop=leases_at_stop,
        )

    async def attempt(self, lease: Lease, still_ours: StillOurs) -> Settlement:
        self.begun.append(lease.id)
        self.working[lease.id] = still_ours
        try:
            while lease.id not in self.let_go:
                await self._moved.wait()
        except trio.Cancelled:
            self.cancelled[lease.id] = trio.current_time()
            raise
        finally:
            del self.working[lease.id]
        return Settlement(lease=lease, verdict=Verdict.SUCCEEDED)

    def finish(self, *job_ids: str) -> None:
        """End the work on these jobs."""
        self.let_go |= set(job_ids)
        self._moved.set()
        self._moved = trio.Event()

    def note_end(self, end: LeaseEnd, settlement: Settlement, _: float) -> None:
        if end is LeaseEnd.SETTLED:
            self.ends.append((settlement.lease.id, settlement.verdict))
        self.losses += end is LeaseEnd.LOST

    async def discard(self, lease: Lease) -> None:
        await trio.sleep(self.discard_s)
        self.discarded.append(lease.id)


class Stuck(Jobs):
    """Work that goes on after a cancel, as in a thread that waits for a disk."""

    hangs_s = 1000.0

    async def attempt(self, lease: Lease, still_ours: StillOurs) -> Settlement:
        self.begun.append(lease.id)
        self.working[lease.id] = still_ours
        with trio.CancelScope(shield=True):
            await trio.sleep(self.hangs_s)
        return Settlement(lease=lease, verdict=Verdict.SUCCEEDED)


@dataclass
class Process:
    """A scheduler at work."""

    store: FakeStore
    work: Jobs
    stop: Stop = field(default_factory=Stop)
    wake: Wake = field(default_factory=Wake)
    held: Held = field(default_factory=dict)
    ended: trio.Event = field(default_factory=trio.Event)
    skipped_s: float = 0.0
    """How much further the clock of leases is than Trio's."""

    def clock(self) -> float:
        return trio.current_time() + self.skipped_s

    async def settle_down(self) -> None:
        """Let everything that can happen now happen."""
        await trio.testing.wait_all_tasks_blocked()

    def add(self, group: str, count: int = 1, **facts: object) -> list[str]:
        """Enqueue in the store, which wakes the scheduler."""
        ids = self.store.add(group, count, kind=self.work.work.kind, **facts)  # type: ignore[arg-type]
        self.wake.set()
        return ids

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await run_work(
            self.store.typed(),
            self.work.work,
            owner="me",
            wake=self.wake,
            stop=self.stop,
            held=self.held,
            clock=self.clock,
            task_status=task_status,
        )
        self.ended.set()


@asynccontextmanager
async def scheduling(
    store: FakeStore, *, kind: Kind = Kind.DOWNLOAD, concurrency: int = 4
) -> AsyncIterator[Process]:
    """A scheduler at work on the store."""
    process = Process(store, Jobs(kind, concurrency))
    async with trio.open_nursery() as nursery:
        await nursery.start(process.run)
        yield process
        nursery.cancel_scope.cancel()
