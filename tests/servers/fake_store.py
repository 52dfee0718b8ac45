"""A `JobStore` in memory for the scheduler's tests, with only the methods that the scheduler calls."""

# ruff: noqa: ARG002 - it has the parameters of `JobStore`

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import trio

from downloader.ids import new_id
from downloader.model import JobSpec, Kind, Lease
from downloader.scheduler.leases import SUSPECT_CRASHES
from downloader.store import (
    JobStore,
    LeaseBatch,
    LeaseRequests,
    Reapable,
    ReapBatch,
    Settled,
    Settlement,
    Shares,
    StoreUnavailable,
    TokenShare,
)
from downloader.store.codec import script_of

LIMIT = 1000
ALL_SHARES = Shares()


@dataclass
class FakeStore:
    """Leases by queue; a leased task stays with the holder until settled or taken away by `lose`."""

    pending: defaultdict[str, list[Lease]] = field(default_factory=lambda: defaultdict(list))
    held: dict[str, Lease] = field(default_factory=dict)
    """By job id."""
    cancelled: set[str] = field(default_factory=set)
    renewed: Counter[str] = field(default_factory=Counter)
    settled: list[tuple[str, str]] = field(default_factory=list)
    """`(transition, job id)` in order."""
    asked: list[int] = field(default_factory=list)
    """The counts of the lease calls."""
    calls: Counter[str] = field(default_factory=Counter)
    before: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    """Called before a call of that name takes effect."""
    after: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    """Called between the effect and the return."""
    dead: list[str] = field(default_factory=list)
    """Ids of the jobs whose lease has ended."""
    longest_lease_s: float | None = None
    """As the last sweep named it."""
    reapable: list[JobSpec] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    ended: set[tuple[str, int]] = field(default_factory=set)
    """Job ids and generations of the leases that were settled."""
    look_s: float | None = None
    """In how many seconds an instance is to ask again, if it got all that can run."""
    _unheard: list[Lease] = field(default_factory=list)

    def typed(self) -> JobStore:
        """The store, typed as the scheduler expects."""
        return cast("JobStore", self)

    def add(
        self,
        queue: str,
        count: int = 1,
        *,
        limit: int = LIMIT,
        kind: Kind = Kind.DOWNLOAD,
        proven: bool = True,
        failing: bool = False,
        token: str = "",
        crashes: int = 0,
    ) -> list[str]:
        """Enqueue; returns the ids."""
        ids = []
        for _ in range(count):
            spec = JobSpec(id=new_id(0, 1), aggr_id=queue, aggr_limit=limit, url="http://x/")
            lease = Lease(
                kind=kind,
                spec=spec,
                queue=queue,
                generation=0,
                attempts=0,
                crashes=crashes,
                limit=limit,
                proven=proven,
                failing=failing,
                token=token,
            )
            self.pending[queue].append(lease)
            ids.append(spec.id)
        return ids

    def cancel(self, job_id: str) -> None:
        """Cancel the job as a client does, without notifying the holder."""
        self.cancelled.add(job_id)

    def lose(self, job_id: str) -> None:
        """Take the lease from the holder, as a sweep does."""
        del self.held[job_id]

    def running(self, queue: str) -> int:
        return sum(lease.queue == queue for lease in self.held.values())

    async def lease(
        self,
        kind: Kind,
        owner: str,
        count: int,
        lease_s: float,
        *,
        shares: Shares = ALL_SHARES,
        requests: LeaseRequests | None = None,
        room: int = 0,
        woken: Collection[int | None] = (),
        types: Collection[str] | None = None,
    ) -> LeaseBatch:
        self.asked.append(count)
        await self._meet(self.before, "lease")
        granted, self._unheard = self._unheard, []
        while len(granted) < count:
            queue = self._next_queue(shares, granted)
            if queue is None:
                break
            lease = self.pending[queue].pop(0)
            # Turns: a queue that gave a task goes to the end.
            self.pending[queue] = self.pending.pop(queue)
            lease = replace(lease, generation=lease.generation + 1)
            self.held[lease.id] = lease
            granted.append(lease)
        try:
            await self._meet(self.after, "lease")
        except StoreUnavailable:
            self._unheard = granted
            raise
        more = self._next_queue(shares, granted) is not None
        due_s = 0 if more else None
        return LeaseBatch(leases=granted, next_due_s=due_s, look_s=due_s if more else self.look_s)

    async def withdraw(
        self,
        kind: Kind,
        owner: str,
        types: Collection[str] | None = None,
        *,
        requests: LeaseRequests | None = None,
    ) -> None:
        await self._meet(self.before, "withdraw")

    def _next_queue(self, shares: Shares, granted: Sequence[Lease]) -> str | None:
        last = None
        unproven = shares.unproven - sum(not lease.proven for lease in granted)
        failing = shares.failing - sum(lease.failing for lease in granted)
        suspects = shares.suspects + sum(lease.crashes >= SUSPECT_CRASHES for lease in granted)
        for queue, leases in self.pending.items():
            if not leases or self.running(queue) >= leases[0].limit or queue in shares.never:
                continue
            head = leases[0]
            if head.crashes >= SUSPECT_CRASHES and suspects:
                continue
            share = shares.tokens.get(head.token, shares.token) if head.token else TokenShare()
            mine = [lease for lease in granted if lease.token == head.token]
            if len(mine) >= share.most:
                continue
            left = min(unproven, share.unproven - sum(not lease.proven for lease in mine))
            if not head.proven and min(left, failing if head.failing else left) < 1:
                continue
            if queue not in shares.last and len(mine) < share.before_last:
                return queue
            last = last or queue
        return last

    async def waiting(self, kind: Kind, *, queue: str = "", token: str = "") -> int:
        await self._meet(self.before, "waiting")
        others = [leases[0] for leases in self.pending.values() if leases and leases[0].queue != queue]
        return sum(not token or lease.token != token for lease in others)

    async def renew(
        self, kind: Kind, owner: str, leases: Sequence[Lease], lease_s: float
    ) -> Sequence[Settled]:
        try:
            await self._meet(self.before, "renew")
            answers = [self._answer(lease) for lease in leases]
            await self._meet(self.after, "renew")
        except StoreUnavailable:
            return [Settled.UNKNOWN] * len(leases)
        self.renewed.update(
            lease.id for lease, answer in zip(leases, answers, strict=True) if answer == "done"
        )
        return answers

    def _answer(self, lease: Lease) -> Settled:
        held = self.held.get(lease.id)
        if lease.id in self.cancelled:
            return Settled.CANCELLED
        is_held = held is not None and held.generation == lease.generation
        return Settled.DONE if is_held or (lease.id, lease.generation) in self.ended else Settled.LEASE_LOST

    async def settle(self, owner: str, settlements: Sequence[Settlement]) -> Sequence[Settled]:
        results: dict[str, Settled] = {}
        for name in dict.fromkeys(map(script_of, settlements)):
            of_script = [settlement for settlement in settlements if script_of(settlement) == name]
            results |= await self._settle(name, of_script)
        return [results[settlement.lease.id] for settlement in settlements]

    async def _settle(self, name: str, settlements: Sequence[Settlement]) -> dict[str, Settled]:
        answers = {settlement.lease.id: self._answer(settlement.lease) for settlement in settlements}
        try:
            await self._meet(self.before, name)
            answers = {settlement.lease.id: self._answer(settlement.lease) for settlement in settlements}
            for settlement in settlements:
                lease = settlement.lease
                if answers[lease.id] is Settled.DONE and self.held.pop(lease.id, None) is not None:
                    self.settled.append((name, lease.id))
                    self.ended.add((lease.id, lease.generation))
                    if name == "release":
                        self.pending[lease.queue].append(lease)
            await self._meet(self.after, name)
        except StoreUnavailable:
            return dict.fromkeys(answers, Settled.UNKNOWN)
        return answers

    async def sweep(self, kind: Kind, count: int = 100, lease_s: float | None = None) -> Sequence[str]:
        await self._meet(self.before, "sweep")
        self.longest_lease_s = lease_s
        found, self.dead = self.dead[:count], self.dead[count:]
        return found

    async def reap(self, count: int, hold_s: float) -> ReapBatch:
        await self._meet(self.before, "reap")
        given, self.reapable = self.reapable[:count], self.reapable[count:]
        return ReapBatch(jobs=[Reapable(spec=spec, has_file=True) for spec in given], next_due_s=None)

    async def remove(self, job_ids: Sequence[str]) -> None:
        self.removed += job_ids

    async def _meet(self, hooks: dict[str, Callable[[], Awaitable[None]]], name: str) -> None:
        if hooks is self.before:
            self.calls[name] += 1
        await trio.lowlevel.checkpoint()
        if name in hooks:
            await hooks[name]()


async def refuse() -> None:
    """A hook that lets the store not answer."""
    raise StoreUnavailable("the store does not answer")
