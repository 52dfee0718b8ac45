"""Calls of scripts that begin at the same time travel in one round trip."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from downloader.errors import StoreUnavailable
from downloader.model import CallbackOutcome, Kind, Lease, Outcome, Verdict
from downloader.observe import COUNTERS, Counters
from downloader.scheduler import LeaseEnd, Stop, Work, run_work
from downloader.service.roles import Worker
from downloader.store import Accepted, CallbackPlan, JobStore, LeaseBatch, Settled, Settlement, Submission
from downloader.store.client import JOINED_CALLS, MANY_CALLS, MAX_ROWS
from downloader.tasks import background
from servers.jobs import closed, leased, spec_for, submitted
from servers.raw_store import RawStore


def reads(raw: RawStore) -> int:
    """How often the server has read from a connection of a client, this one included."""
    count: int = raw.command("INFO", "stats")["total_reads_processed"]
    return count


@asynccontextmanager
async def submitting(store: JobStore) -> AsyncIterator[list[Exception]]:
    """Submit a job while the body begins another call; yields the errors."""
    errors: list[Exception] = []

    async def submit() -> None:
        try:
            await submitted(store)
        except StoreUnavailable as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(submit)
        for _ in range(2):  # in the first the submission begins, in the third it is sent
            await trio.lowlevel.checkpoint()
        yield errors


async def ask(store: JobStore) -> LeaseBatch:
    return await store.lease(Kind.DOWNLOAD, "me", 1, 10)


async def test_a_lease_call_finds_what_is_submitted_in_the_same_round_trip(
    store: JobStore, raw: RawStore
) -> None:
    await submitted(store, "other")
    await leased(store)  # the server has both scripts then
    before = reads(raw)
    async with submitting(store):
        batch = await ask(store)
    assert len(batch.leases) == 1
    assert reads(raw) - before == 1 + 1, "one for both calls, one to ask for the number"


@pytest.mark.row("F12")
async def test_a_lease_call_finds_what_is_submitted_also_where_the_functions_were_lost(
    store: JobStore, raw: RawStore
) -> None:
    await ask(store)
    raw.command("FUNCTION", "FLUSH")
    async with submitting(store):
        batch = await ask(store)
    assert len(batch.leases) == 1


async def test_a_call_that_is_refused_spoils_no_other(store: JobStore, raw: RawStore) -> None:
    await submitted(store, "other")
    await leased(store)
    raw.command("CONFIG", "SET", "maxmemory", 1)
    try:
        async with submitting(store) as errors:
            batch = await ask(store)
    finally:
        raw.command("CONFIG", "SET", "maxmemory", 0)
    assert batch.leases == []
    assert len(errors) == 1


def transitions(raw: RawStore) -> int:
    calls: int = raw.command("INFO", "commandstats")["cmdstat_fcall"]["calls"]
    return calls


async def test_a_call_submits_a_hundred_jobs_at_most(store: JobStore, raw: RawStore) -> None:
    jobs = [Submission(spec=spec_for(store)) for _ in range(2 * MAX_ROWS + 1)]
    before = transitions(raw)
    assert await store.submit(jobs) == [(Accepted.NEW, job.spec.id) for job in jobs]
    assert transitions(raw) - before == 3
    assert MAX_ROWS <= 100, "about 2 ms of the store's time"


async def test_a_lease_call_waits_for_few_of_the_submissions_of_many_jobs(store: JobStore) -> None:
    answered = 0

    async def submit() -> None:
        nonlocal answered
        await store.submit([Submission(spec=spec_for(store)) for _ in range(MAX_ROWS)])
        answered += 1

    await submit()
    async with trio.open_nursery() as nursery:
        for _ in range(10 * MANY_CALLS):
            nursery.start_soon(submit)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        await ask(store)
        # One call may have been sent before, and one begins for each that ends.
        assert answered - 1 <= 2 * MANY_CALLS


@pytest.mark.parametrize(("rows", "at_once"), [(1, JOINED_CALLS), (MAX_ROWS, MANY_CALLS)])
async def test_the_store_runs_few_submissions_before_a_renewal(
    store: JobStore, raw: RawStore, rows: int, at_once: int
) -> None:
    """However many wait, of one job or of many: counted by the times that the store has noted."""
    lease_s, answered = 600, trio.Event()
    await store.submit([Submission(spec=spec_for(store, aggr_limit=MAX_ROWS)) for _ in range(MAX_ROWS)])
    leases = (await store.lease(Kind.DOWNLOAD, "me", MAX_ROWS, 60)).leases

    async def submit() -> None:
        await store.submit([Submission(spec=spec_for(store, "b")) for _ in range(rows)])
        answered.set()

    async with trio.open_nursery() as connections:
        for _ in range(2 * MANY_CALLS):
            connections.start_soon(store.ping)
    async with trio.open_nursery() as nursery:
        for _ in range(10 * at_once):
            nursery.start_soon(submit)
        await answered.wait()
        assert set(await store.renew(Kind.DOWNLOAD, "me", leases, lease_s)) == {Settled.DONE}
    renewed_ms = raw.command("ZSCORE", raw.key("leases", Kind.DOWNLOAD), leases[0].id) - lease_s * 1000
    before = raw.command("ZCOUNT", raw.key("pending", Kind.DOWNLOAD, "b"), "-inf", renewed_ms)
    # Those that were sent with the first answered one, as many that have begun since, and a round trip.
    assert rows <= before <= 2 * at_once * rows + JOINED_CALLS


class Alone:
    """An instance that downloads and delivers in one process, with the store's client that submits too."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.workers = [self._worker(kind) for kind in Kind]
        self._delivered = 0
        self._ended = trio.Event()

    def _worker(self, kind: Kind) -> Worker:
        work = Work(
            kind=kind,
            concurrency=64,
            lease_s=30,
            longest_s=lambda _: 60.0,
            work=self._attempt,
            on_end=self._note_end,
        )
        return Worker(role=kind, work=work, counters=Counters(COUNTERS["processor"]), stop=Stop())

    def _note_end(self, _: LeaseEnd, settlement: Settlement, _seconds: float) -> None:
        self._delivered += settlement.lease.kind is Kind.CALLBACK
        self._ended.set()
        self._ended = trio.Event()

    async def _attempt(self, lease: Lease, _: object) -> Settlement:
        if lease.kind is Kind.CALLBACK:
            return closed(lease, CallbackOutcome(verdict=Verdict.SUCCEEDED), 60, 9)
        plan = CallbackPlan(queue="http http://sink", limit=99)
        return Settlement.of(lease, Outcome(verdict=Verdict.SUCCEEDED), callback=plan, keep_s=60)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            wakes = {worker.work.kind: worker.wake.set for worker in self.workers}
            idle = {worker.work.kind: worker.wake_if_idle for worker in self.workers}
            await nursery.start(partial(self.store.listen, wakes, owner="me", idle=idle))
            for worker in self.workers:
                run = partial(run_work, owner="me", wake=worker.wake, stop=worker.stop, held=worker.held)
                await nursery.start(run, self.store, worker.work)
            task_status.started()

    async def until(self, jobs: int) -> None:
        """Wait until the callbacks of so many jobs are delivered."""
        while self._delivered < jobs:
            await self._ended.wait()


@pytest.fixture
async def alone(store: JobStore) -> AsyncIterator[Alone]:
    """An instance that has done two jobs."""
    instance = Alone(store)
    async with background(instance.run):
        for jobs in (1, 2):
            await submitted(store)
            await instance.until(jobs)
        yield instance


def counts(raw: RawStore) -> Counter[str]:
    """Calls of commands by name, and how often the server has read from a connection."""
    stats = raw.command("INFO", "commandstats")
    calls = Counter({name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()})
    calls["reads"] = reads(raw)
    return calls


async def test_a_job_that_comes_alone_takes_three_round_trips(
    alone: Alone, store: JobStore, raw: RawStore
) -> None:
    """Submission and lease, result and lease of the callback, result of the callback. Nobody is woken."""
    before = counts(raw)
    for jobs in range(3, 13):
        await submitted(store)
        await alone.until(jobs)
    calls = counts(raw) - before
    assert calls["fcall"] == 10 * 5
    assert calls["publish"] == 0
    assert calls["reads"] == 10 * 3 + 2, "two to ask for the numbers"


async def test_jobs_in_a_crowd_share_calls(alone: Alone, store: JobStore, raw: RawStore) -> None:
    before = counts(raw)
    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(submitted, store, f"group {number % 20}")
    await alone.until(102)
    calls = counts(raw) - before
    assert calls["fcall"] - 100 < 100 / 2, "the API joins the submissions too"
    assert calls["reads"] < 100 / 2
    assert sum(calls.values()) < 100 * 90, "commands inside of scripts"
