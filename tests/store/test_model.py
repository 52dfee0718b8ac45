"""Hypothesis drives the store against a small model: any sequence of transitions keeps the promises."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from downloader.config import RedisSettings
from downloader.model import Delivery, ErrorCode, Kind, Lease, Outcome, State, Verdict
from downloader.store import CallbackPlan, RetryAnswer, Settled, Submission
from downloader.store.loop import asyncio_loop
from downloader.store.redis_store import RedisStore, open_store
from servers.jobs import spec_for
from servers.valkey import Valkey

AGGREGATIONS = ("a", "b", "{c}:ü")
OWNERS = ("x", "y")
PLAN = CallbackPlan(group="http http://c", limit=2)
TERMINAL = {State.SUCCEEDED, State.FAILED, State.CANCELLED}
_prefixes = itertools.count()

OUTCOMES = {
    "succeeded": Outcome(verdict=Verdict.SUCCEEDED, response_code=200),
    "failed": Outcome(verdict=Verdict.FAILED, error="e", error_code=ErrorCode.TIMEOUT),
    "retry": Outcome(verdict=Verdict.RETRY, error="e", error_code=ErrorCode.TIMEOUT),
}
DELIVERIES = {
    "succeeded": Delivery(verdict=Verdict.SUCCEEDED),
    "failed": Delivery(verdict=Verdict.FAILED, error="e"),
    "retry": Delivery(verdict=Verdict.RETRY, error="e"),
}

submissions = st.tuples(st.just("submit"), st.sampled_from(AGGREGATIONS), st.integers(1, 3))
leases = st.tuples(st.just("lease"), st.sampled_from(Kind), st.sampled_from(OWNERS), st.integers(1, 4))
steps = st.one_of(
    submissions,
    submissions,
    leases,
    leases,
    st.tuples(
        st.just("settle"),
        st.sampled_from(["succeeded", "failed", "retry", "release"]),
        st.integers(0, 99),
        st.booleans(),
    ),
    st.tuples(st.just("die"), st.integers(0, 99)),
    st.tuples(st.just("reap")),
    st.tuples(st.just("again"), st.integers(0, 99), st.booleans()),
)


@dataclass
class Model:
    """What a client and an operator would expect."""

    store: RedisStore
    jobs: list[str] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    held: list[tuple[Lease, str]] = field(default_factory=list)
    """Leases whose holder believes in them, and the holder."""
    stale: list[tuple[Lease, str]] = field(default_factory=list)
    """Leases that have been settled or taken away."""
    removed: set[str] = field(default_factory=set)
    terminal: dict[str, State] = field(default_factory=dict)

    async def submit(self, aggr_id: str, limit: int) -> None:
        spec = spec_for(self.store, aggr_id, aggr_limit=limit)
        await self.store.submit([Submission(spec=spec)])
        self.jobs.append(spec.id)
        self.limits[aggr_id] = limit

    async def lease(self, kind: Kind, owner: str, count: int) -> None:
        before = self.in_flight()
        batch = await self.store.lease(kind, owner, count, 1000)
        assert len(batch.leases) <= count
        held = {lease.id for lease, _ in self.held if lease.kind is kind}
        for lease in batch.leases:
            assert lease.id not in held, "leased to two at once"
            held.add(lease.id)
            self.held.append((lease, owner))
        for group, count_now in self.in_flight().items():
            if kind is Kind.DOWNLOAD and group in self.limits:
                assert count_now <= max(self.limits[group], before[group]), "limit exceeded"

    def in_flight(self) -> dict[str, int]:
        counts: dict[str, int] = defaultdict(int)
        for lease, _ in self.held:
            counts[lease.group] += 1
        return counts

    async def settle(self, how: str, index: int, stale: bool) -> None:  # noqa: FBT001  # drawn
        leases = self.stale if stale else self.held
        if not leases:
            return
        lease, owner = leases[index % len(leases)]
        answer = await self._settle(lease, owner, how)
        if not stale:
            assert answer is Settled.DONE
            self.held.remove((lease, owner))
            self.stale.append((lease, owner))
            if lease.kind is Kind.DOWNLOAD and how in ("succeeded", "failed"):
                assert lease.id not in self.terminal, "terminal twice"
                self.terminal[lease.id] = State(how)

    async def _settle(self, lease: Lease, owner: str, how: str) -> Settled:
        store = self.store
        if how == "release":
            return (await store.release(lease.kind, owner, [(lease, "why", 0)]))[0]
        if lease.kind is Kind.DOWNLOAD:
            outcome = OUTCOMES[how]
            if how == "retry":
                return (await store.retry_later(lease.kind, owner, [(lease, outcome, 0)]))[0]
            return (await store.finish(owner, [(lease, outcome, PLAN, 0)]))[0]
        delivery = DELIVERIES[how]
        if how == "retry":
            return (await store.retry_later(lease.kind, owner, [(lease, delivery, 0)]))[0]
        return (await store.close_callbacks(owner, [(lease, delivery, 0, PLAN.limit)]))[0]

    async def die(self, index: int) -> None:
        """A holder goes silent: its lease ends, and the sweep hands the task back."""
        if not self.held:
            return
        lease, owner = self.held.pop(index % len(self.held))
        self.stale.append((lease, owner))
        shard = self.store._keys.aggregation_shard(lease.spec.aggr_id)
        key = self.store._keys.key(shard, "leases", lease.kind)
        await self.store._connection.command("ZADD", key, 0, lease.id)
        assert await self.store.sweep(lease.kind) == [lease.id]

    async def reap(self) -> None:
        batch = await self.store.reap(99, 60)
        for job in batch.jobs:
            assert job.spec.id in self.terminal
            assert job.has_file == (self.terminal[job.spec.id] is State.SUCCEEDED)
        await self.store.remove([job.spec.id for job in batch.jobs])
        self.removed |= {job.spec.id for job in batch.jobs}

    async def again(self, index: int, download: bool) -> None:  # noqa: FBT001  # drawn
        if not self.jobs:
            return
        job_id = self.jobs[index % len(self.jobs)]
        answer = await self.store.retry(job_id, download=download, limit=PLAN.limit)
        assert (answer is RetryAnswer.UNKNOWN) == (job_id in self.removed)
        if answer is RetryAnswer.DONE and download:
            assert self.terminal.pop(job_id) is State.FAILED

    async def check(self) -> None:
        """Every job is where it has to be, whatever has happened."""
        running = {lease.id for lease, _ in self.held if lease.kind is Kind.DOWNLOAD}
        pending: dict[str, int] = defaultdict(int)
        for job_id in self.jobs:
            view = await self.store.get(job_id)
            if job_id in self.removed:
                assert view is None
                continue
            assert view is not None
            expected = self.terminal.get(job_id, State.RUNNING if job_id in running else State.PENDING)
            assert view.download.state is expected
            assert (view.callback is not None) == (expected in TERMINAL)
            if expected not in TERMINAL:
                pending[view.spec.aggr_id] += expected is State.PENDING
        sizes = {size.aggr_id: size.pending for size in await self.store.aggregation_sizes()}
        assert sizes == pending
        await self.check_load(pending)

    async def check_load(self, pending: dict[str, int]) -> None:
        """What people are shown is what there is."""
        kinds = [lease.kind for lease, _ in self.held]
        load = await self.store.load(9)
        assert (load.total, load.downloads, load.callbacks) == (
            len(pending),
            kinds.count(Kind.DOWNLOAD),
            kinds.count(Kind.CALLBACK),
        )
        running = Counter(lease.spec.aggr_id for lease, _ in self.held if lease.kind is Kind.DOWNLOAD)
        shown = {one.aggr_id: (one.pending, one.in_flight, one.limit) for one in load.aggregations}
        assert shown == {name: (count, running[name], self.limits[name]) for name, count in pending.items()}

    async def drain(self) -> None:
        """Do all the work that is left; nothing may be stuck."""
        for lease, owner in list(self.held):
            await self._settle(lease, owner, "release")
        for _ in range(4 * len(self.jobs) + 4):
            for kind in Kind:
                for lease in (await self.store.lease(kind, "x", 9, 1000)).leases:
                    assert await self._settle(lease, "x", "succeeded") is Settled.DONE
                    if kind is Kind.DOWNLOAD:
                        self.terminal[lease.id] = State.SUCCEEDED
            await self.reap()
        assert self.removed == set(self.jobs)

    async def leftovers(self, prefix: str) -> list[str]:
        """Keys without a time to live, but for the layout."""
        connection = self.store._connection
        keys = await connection.command("KEYS", f"{prefix}:*")
        return [
            key
            for key in keys
            if await connection.command("PTTL", key) == -1 and not key.endswith("}:layout")
        ]


async def play(url: str, script: list[tuple[object, ...]], prefix: str) -> None:
    redis = RedisSettings(url=url, key_prefix=prefix)
    async with asyncio_loop(), open_store(redis) as store:
        model = Model(store)
        for name, *arguments in script:
            await getattr(model, str(name))(*arguments)
            await model.check()
        await model.drain()
        assert await model.leftovers(prefix) == []


@pytest.mark.slow
@settings(
    max_examples=80,
    deadline=None,  # a store over a socket; the number of examples bounds it
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,  # the same examples for everybody; a longer search runs in the chaos session
)
@given(script=st.lists(steps, min_size=10, max_size=40))
def test_any_sequence_of_transitions_keeps_the_promises(
    valkey: Valkey, script: list[tuple[object, ...]]
) -> None:
    trio.run(play, valkey.url, script, f"m{next(_prefixes)}")
