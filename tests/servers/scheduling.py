"""The scheduler alone, on a store in memory: work that does as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import trio
import trio.testing

from downloader.model import Delivery, Kind, Lease, Outcome, Verdict
from downloader.scheduler import (
    End,
    Ended,
    Held,
    Stop,
    Wake,
    Workload,
    run_workload,
    settle,
)
from downloader.store import Settled
from servers.fake_store import FakeStore

LEASE_S = 30.0


class Work(Workload):
    """Each job works until the test ends it; then it succeeds."""

    def __init__(self, store: FakeStore, kind: Kind, concurrency: int) -> None:
        self.kind = kind
        self.concurrency = concurrency
        self.lease_s = LEASE_S
        self.store = store
        self.working: dict[str, Callable[[], bool]] = {}
        """`still_ours` by job id."""
        self.begun: list[str] = []
        self.cancelled: dict[str, float] = {}
        """Trio time at which the work was cancelled, by job id."""
        self.let_go: set[str] = set()
        self.ends: list[tuple[str, Verdict]] = []
        self.losses = 0
        self.discarded: list[str] = []
        self.open = True
        self._moved = trio.Event()

    def may_lease(self) -> bool:
        return self.open

    async def work(self, lease: Lease, still_ours: Callable[[], bool]) -> End:
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
        if lease.kind is Kind.DOWNLOAD:
            return Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
        return Delivery(verdict=Verdict.SUCCEEDED)

    def finish(self, *job_ids: str) -> None:
        """End the work on these jobs."""
        self.let_go |= set(job_ids)
        self._moved.set()
        self._moved = trio.Event()

    async def settle(self, results: Sequence[Ended]) -> Sequence[Settled]:
        return await settle(self.store.typed(), self.kind, "me", results, self._close)

    async def _close(self, results: Sequence[Ended]) -> Sequence[Settled]:
        if self.kind is Kind.DOWNLOAD:
            ended = [(lease, cast("Outcome", end), None, 60.0) for lease, end in results]
            return await self.store.finish("me", ended)
        return await self.store.close_callbacks(
            "me", [(lease, cast("Delivery", end), 60.0, 4) for lease, end in results]
        )

    def ended(self, lease: Lease, end: End, seconds: float) -> None:  # noqa: ARG002  # not asked for
        self.ends.append((lease.id, end.verdict))

    def lost(self) -> None:
        self.losses += 1

    async def discard(self, lease: Lease) -> None:
        self.discarded.append(lease.id)


class Stuck(Work):
    """Work that goes on after a cancel, as in a thread that waits for a disk."""

    hangs_s = 1000.0

    async def work(self, lease: Lease, still_ours: Callable[[], bool]) -> End:
        self.begun.append(lease.id)
        self.working[lease.id] = still_ours
        with trio.CancelScope(shield=True):
            await trio.sleep(self.hangs_s)
        return Outcome(verdict=Verdict.SUCCEEDED)


@dataclass
class Process:
    """A scheduler at work."""

    store: FakeStore
    work: Work
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
        """Enqueue in the store, which wakes it."""
        ids = self.store.add(group, count, kind=self.work.kind, **facts)  # type: ignore[arg-type]
        self.wake.set()
        return ids

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await run_workload(
            self.store.typed(),
            self.work,
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
    process = Process(store, Work(store, kind, concurrency))
    async with trio.open_nursery() as nursery:
        await nursery.start(process.run)
        yield process
        nursery.cancel_scope.cancel()
