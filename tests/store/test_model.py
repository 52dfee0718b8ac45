"""Hypothesis drives the store against a small model: any sequence of transitions keeps the promises.

The server is real; its clock is not, so that a step can move it. After every step all that people and
instances can see is compared with what the model expects.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from downloader.config import RedisSettings
from downloader.errors import StoreUnavailable
from downloader.model import Cooldown, Delivery, ErrorCode, JobSpec, Kind, Lease, Outcome, State, Verdict
from downloader.store import CallbackPlan, CancelAnswer, RetryAnswer, Settled, Submission
from downloader.store.loop import asyncio_loop
from downloader.store.records import fields
from downloader.store.redis import StoreClient, open_client
from downloader.store.redis_store import RedisStore
from servers.jobs import spec_for
from servers.store_clock import StoreClock
from servers.valkey import Valkey

PLANS: Mapping[str, CallbackPlan | None] = {
    "a": CallbackPlan(group="http http://c", limit=2),
    "b": CallbackPlan(group="http http://c", limit=2),
    "{c}:ü": None,
}
"""Aggregations, and where the callbacks of their jobs go."""
OWNERS = ("x", "y")
LEASE_MS, DELAY_MS, KEEP_MS, HOLD_MS = 100_000, 30_000, 60_000, 40_000
COOL_MS, GAP_MS, CATCH_UP_MS = 70_000, 50_000, 1000
FRUITFUL = 12
"""How often at the least each kind of step has to have had something to do, in all examples together."""

OUTCOMES = {
    "succeeded": Outcome(verdict=Verdict.SUCCEEDED, response_code=200),
    "failed": Outcome(verdict=Verdict.FAILED, error="e", error_code=ErrorCode.TIMEOUT),
    "retry": Outcome(verdict=Verdict.RETRY, error="e", error_code=ErrorCode.TIMEOUT),
    "throttled": Outcome(
        verdict=Verdict.THROTTLED, error="e", cooldown=Cooldown(seconds=COOL_MS / 1000, asked=True)
    ),
}
DELIVERIES = {
    "succeeded": Delivery(verdict=Verdict.SUCCEEDED),
    "failed": Delivery(verdict=Verdict.FAILED, error="e"),
    "retry": Delivery(verdict=Verdict.RETRY, error="e"),
}

kinds, owners, indexes = st.sampled_from(Kind), st.sampled_from(OWNERS), st.integers(0, 99)
ends = st.sampled_from(["succeeded", "failed", "retry", "release"])
submissions = st.tuples(
    st.just("submit"), st.sampled_from(list(PLANS)), st.integers(1, 3), st.sampled_from([0, 0, 3, 9])
)
leases = st.tuples(st.just("lease"), kinds, owners, st.integers(0, 4))
settlements = st.tuples(st.just("settle"), kinds, indexes, ends)
adjustments = st.fixed_dictionaries(
    {},
    optional={
        "limit": st.sampled_from([1, 3, None]),
        "rate": st.sampled_from([1000 / GAP_MS, None]),
        "delay": st.sampled_from([GAP_MS / 1000, 0, None]),
        "paused": st.booleans(),
    },
)
steps = st.one_of(
    submissions,
    submissions,
    leases,
    leases,
    settlements,
    settlements,
    st.tuples(st.just("throttle"), indexes),
    st.tuples(st.just("adjust"), st.sampled_from(list(PLANS)), adjustments),
    st.tuples(st.just("settle_late"), kinds, indexes, ends),
    st.tuples(st.just("settle_anothers"), kinds, indexes, ends),
    st.tuples(st.just("renew"), kinds, indexes, st.booleans()),
    st.tuples(st.just("lose_answer"), kinds, owners, st.integers(1, 4)),
    st.tuples(st.just("crash"), kinds, owners),
    st.tuples(st.just("move_clock"), st.sampled_from([1, DELAY_MS, LEASE_MS // 2, LEASE_MS])),
    st.tuples(st.just("sweep"), kinds),
    st.tuples(st.just("reap"), st.booleans()),
    st.tuples(st.just("remove"), indexes),
    st.tuples(st.just("retry"), indexes, st.booleans()),
    st.tuples(st.just("cancel"), indexes, st.booleans()),
    st.tuples(st.just("restart")),
)
ACTIONS = {
    *("submit", "lease", "settle", "settle_late", "settle_anothers", "renew", "lose_answer", "crash"),
    *("move_clock", "sweep", "reap", "remove", "retry", "cancel", "restart", "throttle", "adjust"),
}


@dataclass
class Task:
    """One task as it must stand in the store."""

    group: str
    due_ms: int
    priority: int = 0
    state: State = State.PENDING
    owner: str = ""
    ends_ms: int = 0
    generation: int = 0
    settled: int = 0
    attempts: int = 0
    deliveries: int = 0
    crashes: int = 0

    stopping: bool = False
    """It is cancelled and still has its slot."""

    def held_by(self, lease: Lease, owner: str) -> bool:
        """Whether the lease is the one under which the task runs."""
        return (self.state, self.owner, self.generation) == (State.RUNNING, owner, lease.generation)

    def cancelled_for(self, lease: Lease, owner: str) -> bool:
        """Whether the lease is the one under which the task ran when it was cancelled."""
        return (self.state, self.owner, self.generation) == (State.CANCELLED, owner, lease.generation)


@dataclass
class Pace:
    """What an aggregation may do, besides its limit."""

    asked: int = 0
    """The limit that its newest job has named."""
    adjusted: bool = False
    """Whether an operator's limit holds instead."""
    paused: bool = False
    cooling: int = 0
    rate: float | None = None
    delay: float | None = None
    started: int | None = None
    """The last start that counts, in ms."""

    def gap(self) -> float:
        return max(1000 / self.rate if self.rate else 0, (self.delay or 0) * 1000)

    def opens(self) -> int:
        """Before when nothing starts."""
        return max(self.cooling, 0 if self.started is None else round(self.started + self.gap()))

    def start(self, due_ms: int, now_ms: int) -> bool:
        if self.gap():
            late = not self.delay and due_ms <= self.opens() and now_ms - self.opens() <= CATCH_UP_MS
            self.started = self.opens() if late else now_ms
        return True


@dataclass
class Job:
    """One job as it must stand in the store."""

    spec: JobSpec
    tasks: dict[Kind, Task]
    reap_ms: int | None = None
    reaping: bool = False
    last_callback: int = 0
    """Generation of a callback that a new download has made void."""


class Deaf:
    """A client whose server carries out a call; the answer is lost."""

    def __init__(self, client: StoreClient) -> None:
        self._client = client
        self.missed: Any = None

    async def run(self, *arguments: Any, **more: Any) -> Any:
        self.missed = await self._client.run(*arguments, **more)
        raise StoreUnavailable("the answer was lost")


@dataclass
class Model:
    """What a client and an operator would expect."""

    server: Valkey
    client: StoreClient
    done: Counter[str]
    """How often each step had something to do."""
    jobs: dict[str, Job] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    orphans: list[Task] = field(default_factory=list)
    """Cancelled downloads whose job is removed, while they still have their slot."""
    limits: dict[tuple[Kind, str], int] = field(default_factory=dict)
    pace: dict[str, Pace] = field(default_factory=lambda: defaultdict(Pace))
    """Of aggregations."""
    leases: list[tuple[Lease, str]] = field(default_factory=list)
    """All that were ever given, and to whom."""
    unheard: dict[tuple[Kind, str], list[tuple[str, int]]] = field(default_factory=dict)
    """What each instance's last lease call was given, where its answer was lost: job id and generation."""

    def __post_init__(self) -> None:
        self.clock = StoreClock(self.client)
        self.stores = {owner: RedisStore(self.client) for owner in OWNERS}
        self.base = self.client.keys.base(0)

    @property
    def store(self) -> RedisStore:
        return self.stores["x"]

    def tasks(self, kind: Kind) -> Iterator[tuple[str, Task]]:
        return ((job_id, job.tasks[kind]) for job_id, job in self.jobs.items() if kind in job.tasks)

    def running(self, kind: Kind, group: str | None = None) -> int:
        tasks = [task for _, task in self.tasks(kind)] + (self.orphans if kind is Kind.DOWNLOAD else [])
        return sum(
            (task.state is State.RUNNING or task.stopping) and group in (None, task.group) for task in tasks
        )

    def task_of(self, lease: Lease) -> Task | None:
        job = self.jobs.get(lease.id)
        return job.tasks.get(lease.kind) if job else None

    def current(self) -> list[tuple[Lease, str]]:
        """The leases under which tasks run, and their holders."""
        return [
            (lease, owner)
            for lease, owner in self.leases
            if (task := self.task_of(lease)) is not None and task.held_by(lease, owner)
        ]

    def forget_empty_groups(self) -> None:
        for kind, group in list(self.limits):
            if not self.running(kind, group) and not self.due(kind, group):
                del self.limits[kind, group]
                if kind is Kind.DOWNLOAD:
                    self.pace.pop(group, None)

    async def held(self, kind: Kind) -> list[tuple[Lease, str]]:
        """The leases of a kind under which tasks run; if there is none, one is made, so that steps count."""
        for _ in range(2):  # the first call may repeat one whose answer was lost
            if found := [each for each in self.current() if each[0].kind is kind]:
                return found
            await self.fill(kind)
            await self.lease(kind, "x", 2)
        return []

    async def fill(self, kind: Kind) -> None:
        """Have a task wait."""
        if kind is Kind.DOWNLOAD:
            await self.submit("a", 3)
        elif held := await self.held(Kind.DOWNLOAD):
            await self.settle_one(*held[0], "failed")

    async def late(self, kind: Kind) -> list[tuple[Lease, str]]:
        """Leases of a kind that were settled or have ended."""
        current = self.current()
        return [each for each in self.leases if each[0].kind is kind and each not in current]

    # Steps

    @property
    def now_ms(self) -> int:
        return self.clock.now_ms

    async def move_clock(self, by_ms: int) -> None:
        await self.clock.move(by_ms / 1000)
        self.done["move_clock"] += 1

    async def restart(self) -> None:
        """The server dies, and comes back with its append-only file."""
        self.server.kill()
        await trio.to_thread.run_sync(self.server.start)
        self.done["restart"] += bool(self.jobs)

    async def crash(self, kind: Kind, owner: str) -> None:
        """An instance starts anew: it does not know what it was given, and the time of that runs out."""
        held = await self.held(kind)
        self.done["crash"] += bool(held)
        self.restart_instance(owner)
        await self.move_clock(LEASE_MS)
        await self.sweep(kind)

    def restart_instance(self, owner: str) -> None:
        self.stores[owner] = RedisStore(self.client)
        for kind in Kind:
            self.unheard.pop((kind, owner), None)

    async def submit(self, aggr_id: str, limit: int, priority: int = 0) -> None:
        spec = spec_for(self.store, aggr_id, aggr_limit=limit, priority=priority)
        for _ in range(2):  # the second is a repetition
            await self.store.submit([Submission(spec=spec)])
        self.jobs[spec.id] = Job(spec, {Kind.DOWNLOAD: Task(aggr_id, self.now_ms, priority)})
        self.pace[aggr_id].asked = limit
        if not self.pace[aggr_id].adjusted:
            self.limits[Kind.DOWNLOAD, aggr_id] = limit
        self.done["submit"] += 1

    async def lease(self, kind: Kind, owner: str, count: int) -> None:
        batch = await self.stores[owner].lease(kind, owner, count, LEASE_MS / 1000)
        asked = count > 0 or (kind, owner) in self.unheard
        self.give(kind, owner, count, [(lease.id, lease.generation) for lease in batch.leases])
        self.unheard.pop((kind, owner), None)
        self.leases += [(lease, owner) for lease in batch.leases]
        assert batch.next_due_s == (self.next_due_s(kind) if asked else None)
        self.done["lease"] += bool(batch.leases)

    async def lose_answer(self, kind: Kind, owner: str, count: int) -> None:
        store = self.stores[owner]
        if (kind, owner) not in self.unheard:
            await self.fill(kind)
        store._client = deaf = Deaf(self.client)  # type: ignore[assignment]
        with pytest.raises(StoreUnavailable):
            await store.lease(kind, owner, count, LEASE_MS / 1000)
        store._client = self.client
        given = [fields(flat) for flat in fields(deaf.missed)["leases"]]
        missed = [(each["id"], int(each["generation"])) for each in given]
        self.give(kind, owner, count, missed)
        self.unheard[kind, owner] = self.unheard.get((kind, owner)) or missed
        self.done["lose_answer"] += bool(missed)

    def give(self, kind: Kind, owner: str, count: int, given: list[tuple[str, int]]) -> None:
        """Check what an instance was given, and take note of it."""
        before = self.unheard.get((kind, owner))
        if before:
            mine = [
                (job_id, generation)
                for job_id, generation in before
                if job_id in self.jobs
                and (task := self.jobs[job_id].tasks.get(kind)) is not None
                and (task.state, task.owner, task.generation) == (State.RUNNING, owner, generation)
            ]
            assert given == mine, "a request that is repeated is given what it was given, and nothing else"
            for job_id, _ in given:
                self.jobs[job_id].tasks[kind].ends_ms = self.now_ms + LEASE_MS
            return
        grantable = sum(self.grantable(kind, group) for of, group in self.limits if of is kind)
        assert len(given) == min(count, grantable)
        for job_id, generation in given:
            task = self.jobs[job_id].tasks[kind]
            assert self.grantable(kind, task.group) > 0, "beyond the limit, or too early"
            assert self.turn(task) == min(map(self.turn, self.due_tasks(kind, task.group))), "not its turn"
            if kind is Kind.DOWNLOAD:
                self.pace[task.group].start(min(self.due(kind, task.group)), self.now_ms)
            assert generation == task.generation + 1
            task.state, task.owner, task.generation = State.RUNNING, owner, generation
            task.ends_ms = self.now_ms + LEASE_MS
            task.deliveries += 1

    def waiting(self, kind: Kind, group: str) -> list[Task]:
        return [task for _, task in self.tasks(kind) if task.group == group and task.state is State.PENDING]

    def due(self, kind: Kind, group: str) -> list[int]:
        """When the waiting tasks of a group are due."""
        return [task.due_ms for task in self.waiting(kind, group)]

    def due_tasks(self, kind: Kind, group: str) -> list[Task]:
        """The waiting tasks of a group that are due now."""
        return [task for task in self.waiting(kind, group) if task.due_ms <= self.now_ms]

    @staticmethod
    def turn(task: Task) -> tuple[int, int]:
        """Those with the least begin first."""
        return -task.priority, task.due_ms

    def opens(self, kind: Kind, group: str) -> int:
        """Before when nothing of a group starts."""
        return self.pace[group].opens() if kind is Kind.DOWNLOAD else 0

    def paused(self, kind: Kind, group: str) -> bool:
        return kind is Kind.DOWNLOAD and self.pace[group].paused

    def grantable(self, kind: Kind, group: str) -> int:
        if self.paused(kind, group):
            return 0
        free = max(0, self.limits[kind, group] - self.running(kind, group))
        due = sorted(self.due_tasks(kind, group), key=self.turn)
        if kind is Kind.CALLBACK:
            return len(due[:free])
        pace = replace(self.pace[group])
        return sum(
            pace.opens() <= self.now_ms
            and pace.start(min(task.due_ms for task in due[started:]), self.now_ms)
            for started in range(min(free, len(due)))
        )

    def next_due_s(self, kind: Kind) -> float | None:
        dues = [
            max(0, max(min(due), self.opens(kind, group)) - self.now_ms) / 1000
            for of, group in self.limits
            if of is kind
            and (due := self.due(kind, group))
            and self.running(kind, group) < self.limits[kind, group]
            and not self.paused(kind, group)
        ]
        return min(dues, default=None)

    async def renew(self, kind: Kind, index: int, late: bool) -> None:  # noqa: FBT001  # drawn
        leases = await (self.late(kind) if late else self.held(kind))
        if not leases:
            return
        lease, owner = leases[index % len(leases)]
        task = self.task_of(lease)
        answer = await self.stores[owner].renew(kind, owner, [lease], LEASE_MS / 1000)
        assert answer == [self.expected(lease, owner)]
        if task is not None and task.held_by(lease, owner):
            task.ends_ms = self.now_ms + LEASE_MS
        self.done["renew"] += 1

    def expected(self, lease: Lease, owner: str) -> Settled:
        """The answer to somebody who settles or renews."""
        task = self.task_of(lease)
        if task is not None and task.cancelled_for(lease, owner):
            return Settled.CANCELLED
        if task is not None and (task.held_by(lease, owner) or task.settled == lease.generation):
            return Settled.DONE
        return Settled.LEASE_LOST

    async def settle(self, kind: Kind, index: int, how: str) -> None:
        if held := await self.held(kind):
            await self.settle_one(*held[index % len(held)], how)
            self.done["settle"] += 1

    async def adjust(self, aggr_id: str, changes: dict[str, Any]) -> None:
        """An operator changes an aggregation."""
        if (Kind.DOWNLOAD, aggr_id) not in self.limits:
            await self.submit(aggr_id, 3)
        pace = self.pace[aggr_id]
        if "limit" in changes:
            pace.adjusted = changes["limit"] is not None
            self.limits[Kind.DOWNLOAD, aggr_id] = changes["limit"] or pace.asked
        for name in ("rate", "delay", "paused"):
            if name in changes:
                setattr(pace, name, changes[name])
        found = await self.store.adjust(aggr_id, changes)
        assert found is not None
        assert (found.limit, found.rate, found.delay, found.paused) == (
            self.limits[Kind.DOWNLOAD, aggr_id],
            pace.rate,
            pace.delay,
            pace.paused,
        )
        self.done["adjust"] += bool(changes)

    async def throttle(self, index: int) -> None:
        """The origin of a download asks for a pause."""
        if held := await self.held(Kind.DOWNLOAD):
            await self.settle_one(*held[index % len(held)], "throttled")
            self.done["throttle"] += 1

    async def settle_one(self, lease: Lease, owner: str, how: str) -> None:
        assert await self.call_settle(lease, owner, how) is Settled.DONE
        self.note_settled(lease, how)
        self.forget_empty_groups()

    async def settle_late(self, kind: Kind, index: int, how: str) -> None:
        """By a holder whose lease has ended or was settled: a repeated call, or one that was frozen."""
        if late := await self.late(kind):
            lease, owner = late[index % len(late)]
            expected = self.expected(lease, owner)
            assert await self.call_settle(lease, owner, how) is expected
            if expected is Settled.CANCELLED and (task := self.task_of(lease)) is not None:
                task.stopping = False
            self.done["settle_late"] += 1

    async def settle_anothers(self, kind: Kind, index: int, how: str) -> None:
        """By an instance that does not hold the lease."""
        if held := await self.held(kind):
            lease, owner = held[index % len(held)]
            other = next(name for name in OWNERS if name != owner)
            assert await self.call_settle(lease, other, how) is Settled.LEASE_LOST
            self.done["settle_anothers"] += 1

    async def call_settle(self, lease: Lease, owner: str, how: str) -> Settled:
        store, kind = self.stores[owner], lease.kind
        if how == "release":
            return (await store.release(kind, owner, [(lease, "why", DELAY_MS / 1000)]))[0]
        end = OUTCOMES[how] if kind is Kind.DOWNLOAD else DELIVERIES[how]
        if how in ("retry", "throttled"):
            return (await store.retry_later(kind, owner, [(lease, end, DELAY_MS / 1000)]))[0]
        plan = PLANS[lease.spec.aggr_id]
        if isinstance(end, Outcome):
            return (await store.finish(owner, [(lease, end, plan, KEEP_MS / 1000)]))[0]
        assert plan is not None
        return (await store.close_callbacks(owner, [(lease, end, KEEP_MS / 1000, plan.limit)]))[0]

    def note_settled(self, lease: Lease, how: str) -> None:
        job, kind = self.jobs[lease.id], lease.kind
        task, plan = job.tasks[kind], PLANS[lease.spec.aggr_id]
        task.settled = lease.generation
        task.attempts += how not in ("release", "throttled")
        if how in ("retry", "release", "throttled"):
            task.state, task.owner, task.due_ms = State.PENDING, "", self.now_ms + DELAY_MS
            if how == "retry" and kind is Kind.CALLBACK:
                self.limits[kind, task.group] = 1
            if how == "throttled":
                self.pace[task.group].cooling = self.now_ms + COOL_MS
            return
        task.state = State(how)
        if kind is Kind.DOWNLOAD:
            self.note_over(job)
            return
        job.reap_ms = self.now_ms + KEEP_MS
        if how == "succeeded":
            assert plan is not None
            self.limits[kind, task.group] = plan.limit

    def note_over(self, job: Job) -> None:
        """A download has reached its terminal state."""
        plan = PLANS[job.spec.aggr_id]
        if plan is None:
            job.reap_ms = self.now_ms + KEEP_MS
            return
        job.tasks[Kind.CALLBACK] = Task(plan.group, self.now_ms, generation=job.last_callback)
        self.limits.setdefault((Kind.CALLBACK, plan.group), plan.limit)

    async def cancel(self, index: int, runs: bool) -> None:  # noqa: FBT001  # drawn
        if runs:
            await self.held(Kind.DOWNLOAD)
        wanted = [
            job_id for job_id, task in self.tasks(Kind.DOWNLOAD) if (task.state is State.RUNNING) is runs
        ]
        ids = [*wanted, *self.jobs]
        if not ids:
            return
        job = self.jobs[ids[index % len(ids)]]
        task = job.tasks[Kind.DOWNLOAD]
        expected = CancelAnswer.DONE
        if task.state in (State.SUCCEEDED, State.FAILED):
            expected = CancelAnswer.CONFLICT
        assert await self.store.cancel(job.spec, PLANS[job.spec.aggr_id], KEEP_MS / 1000) is expected
        if task.state in (State.PENDING, State.RUNNING):
            task.stopping = task.state is State.RUNNING
            task.state = State.CANCELLED
            self.note_over(job)
            self.done["cancel"] += 1

    async def sweep(self, kind: Kind) -> None:
        over = [
            (job_id, task)
            for job_id, task in self.tasks(kind)
            if task.state is State.RUNNING and task.ends_ms <= self.now_ms
        ]
        assert set(await self.store.sweep(kind)) == {job_id for job_id, _ in over}
        for _, task in over:
            task.state, task.owner, task.due_ms = State.PENDING, "", self.now_ms
            task.crashes += 1
        for task in [*self.orphans, *(task for _, task in self.tasks(Kind.DOWNLOAD))]:
            task.stopping = task.stopping and task.ends_ms > self.now_ms
        self.orphans = [task for task in self.orphans if task.stopping]
        self.done["sweep"] += bool(over)

    async def reap(self, dies: bool) -> None:  # noqa: FBT001  # drawn
        """What is due is given to a reaper, which forgets it or dies before."""
        if self.jobs and all(job.reap_ms is None for job in self.jobs.values()):
            await self.settle(Kind.CALLBACK, 0, "succeeded")
            await self.move_clock(KEEP_MS)
        batch = await self.store.reap(99, HOLD_MS / 1000)
        due = {
            job_id: job
            for job_id, job in self.jobs.items()
            if job.reap_ms is not None and job.reap_ms <= self.now_ms
        }
        assert {job.spec.id: job.has_file for job in batch.jobs} == {
            job_id: (download := job.tasks[Kind.DOWNLOAD]).state is State.SUCCEEDED
            or download.deliveries > download.attempts
            for job_id, job in due.items()
        }
        for job in due.values():
            job.reaping, job.reap_ms = True, self.now_ms + HOLD_MS
        if not dies:
            await self.forget(list(due))
        self.done["reap"] += bool(due)

    async def remove(self, index: int) -> None:
        """Of any job at all: nobody removes what he was not given."""
        if self.jobs:
            job_id = list(self.jobs)[index % len(self.jobs)]
            await self.forget([job_id])
            self.done["remove"] += 1

    async def forget(self, job_ids: list[str]) -> None:
        await self.store.remove(job_ids)
        for job_id in job_ids:
            if self.jobs[job_id].reaping:
                download = self.jobs.pop(job_id).tasks[Kind.DOWNLOAD]
                self.orphans += [download] if download.stopping else []
                self.removed.append(job_id)

    async def retry(self, index: int, download: bool) -> None:  # noqa: FBT001  # drawn
        kind = Kind.DOWNLOAD if download else Kind.CALLBACK
        if all(task.state is not State.FAILED for _, task in self.tasks(kind)):
            await self.settle(kind, index, "failed")
        failed = [job_id for job_id, task in self.tasks(kind) if task.state is State.FAILED]
        ids = failed if failed and index % 2 else [*self.jobs, *self.removed]
        job_id = ids[index % len(ids)]
        answer = await self.store.retry(job_id, download=download, limit=2)
        assert answer is self.expected_of_retry(job_id, download=download)
        if answer is not RetryAnswer.DONE:
            return
        job = self.jobs[job_id]
        task = job.tasks[kind]
        if download and Kind.CALLBACK in job.tasks:
            job.last_callback = job.tasks.pop(Kind.CALLBACK).generation
        limit = job.spec.aggr_limit if download else 2
        if download and (kind, task.group) not in self.limits:
            self.pace[task.group].asked = limit
        self.limits.setdefault((kind, task.group), limit)
        task.state, task.due_ms, task.attempts, task.crashes = State.PENDING, self.now_ms, 0, 0
        job.reap_ms = None
        self.done["retry"] += 1

    def expected_of_retry(self, job_id: str, *, download: bool) -> RetryAnswer:
        if job_id in self.removed:
            return RetryAnswer.UNKNOWN
        job = self.jobs[job_id]
        states = {kind: task.state for kind, task in job.tasks.items()}
        again = states.get(Kind.DOWNLOAD if download else Kind.CALLBACK)
        waits = download and states.get(Kind.CALLBACK) in (State.PENDING, State.RUNNING)
        return RetryAnswer.CONFLICT if job.reaping or again is not State.FAILED or waits else RetryAnswer.DONE

    # Checks

    async def check(self) -> None:
        """Every job is where it has to be, whatever has happened."""
        self.forget_empty_groups()
        for job_id, job in self.jobs.items():
            view = await self.store.get(job_id)
            assert view is not None
            shown = {Kind.DOWNLOAD: view.download} | ({Kind.CALLBACK: view.callback} if view.callback else {})
            assert {
                kind: (task.state, task.attempts, task.deliveries, task.crashes)
                for kind, task in shown.items()
            } == {
                kind: (task.state, task.attempts, task.deliveries, task.crashes)
                for kind, task in job.tasks.items()
            }
        if self.removed:
            assert await self.store.get(self.removed[-1]) is None
        groups = [group for kind, group in self.limits if kind is Kind.DOWNLOAD]
        pending = {group: len(self.due(Kind.DOWNLOAD, group)) for group in groups}
        sizes = {size.aggr_id: size.pending for size in await self.store.aggregation_sizes()}
        assert sizes == pending
        load = await self.store.load(9)
        assert (load.total, load.downloads, load.callbacks) == (
            len(groups),
            self.running(Kind.DOWNLOAD),
            self.running(Kind.CALLBACK),
        )
        assert {
            one.aggr_id: (one.pending, one.in_flight, one.limit, one.cooling_until_ms, one.paused)
            for one in load.aggregations
        } == {
            group: (
                pending[group],
                self.running(Kind.DOWNLOAD, group),
                self.limits[Kind.DOWNLOAD, group],
                pace.cooling if (pace := self.pace[group]).cooling > self.now_ms else None,
                pace.paused,
            )
            for group in groups
        }

    async def drain(self) -> None:
        """Do all the work that is left; nothing may be stuck."""
        await self.move_clock(10 * LEASE_MS)
        for kind, group in list(self.limits):
            if kind is Kind.DOWNLOAD:
                await self.adjust(group, {"paused": False, "rate": None, "delay": None})
        for kind in Kind:
            await self.sweep(kind)
        for owner in OWNERS:
            self.restart_instance(owner)
        for _ in range(2 * len(self.jobs) + 2):
            for kind in Kind:
                await self.lease(kind, "x", 9)
                for lease, _ in self.current():
                    await self.settle_one(lease, "x", "succeeded")
        await self.move_clock(10 * LEASE_MS)
        await self.reap(dies=False)
        assert self.jobs == {}

    async def leftovers(self) -> set[str]:
        """Keys without a time to live."""
        keys = await self.client.command("KEYS", f"{self.base}*")
        return {key.removeprefix(self.base) for key in keys if await self.client.command("PTTL", key) == -1}


async def play(server: Valkey, script: list[tuple[Any, ...]], prefix: str, done: Counter[str]) -> None:
    redis = RedisSettings(url=server.url, key_prefix=prefix)
    async with asyncio_loop(), open_client(redis) as client:
        model = Model(server, client, done)
        await model.clock.start()
        for name, *arguments in script:
            await getattr(model, name)(*arguments)
            await model.check()
        await model.drain()
        assert await model.leftovers() == {"layout", "clock"}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.row("F4", "F7")
def test_any_sequence_of_transitions_keeps_the_promises() -> None:
    done: Counter[str] = Counter()
    prefixes = itertools.count()

    @settings(
        max_examples=40,
        deadline=None,  # a store over a socket; the number of examples bounds it
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=True,  # the same examples for everybody; a longer search runs in the chaos session
        phases=[Phase.generate],  # to shrink an example takes minutes: each try is a run on the server
    )
    @given(script=st.lists(steps, min_size=20, max_size=50))
    def run(script: list[tuple[Any, ...]]) -> None:
        trio.run(play, server, script, f"m{next(prefixes)}", done)

    # With `everysec` a write may wait for a slow disk, and a killed server would lose it.
    with Valkey("--appendonly", "yes", "--appendfsync", "no") as server:
        run()
    assert {name for name in ACTIONS if done[name] < FRUITFUL} == set(), "these hardly ever do anything"
