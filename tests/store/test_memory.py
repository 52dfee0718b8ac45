"""Memory of the server: new jobs leave room for accepted jobs, and an operator can act in a full store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import redis
import trio

from downloader.config import RedisSettings
from downloader.model import CallbackOutcome, JobSpec, Kind, Outcome, Verdict
from downloader.store import (
    Accepted,
    CallbackPlan,
    Changed,
    JobStore,
    StoreUnavailable,
    Submission,
    asyncio_loop,
    open_store,
)
from servers.jobs import closed, downloaded, spec_for, submitted
from servers.valkey import Valkey

MIB = 2**20
PLAN = CallbackPlan(group="http 127.0.0.1", limit=1000)
FAILED = Outcome(verdict=Verdict.FAILED, error="e")


@pytest.fixture(scope="module")
def bounded() -> Iterator[Valkey]:
    with Valkey("--maxmemory-policy", "noeviction") as server:
        yield server


@pytest.fixture
def server(bounded: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(bounded.url, decode_responses=True) as client:
        client.config_set("maxmemory", 0)
        client.flushall()
        yield client


@pytest.fixture
async def store(bounded: Valkey, server: redis.Redis) -> AsyncIterator[JobStore]:
    async with asyncio_loop(), open_store(RedisSettings(url=bounded.url, timeout=30)) as opened:
        yield opened


def used(server: redis.Redis) -> int:
    return int(server.info("memory")["used_memory"])


@asynccontextmanager
async def watched(store: JobStore) -> AsyncIterator[None]:
    """The memory has been read, and is read again each second."""
    async with trio.open_nursery() as nursery:
        await nursery.start(store.watch_memory)
        yield
        nursery.cancel_scope.cancel()


async def fill(store: JobStore, **fields: object) -> list[JobSpec]:
    """Submit jobs of an aggregation until a refusal; returns the accepted jobs."""
    accepted: list[JobSpec] = []
    while True:
        specs = [spec_for(store, "a", aggr_limit=1000, **fields) for _ in range(50)]
        results = await store.submit([Submission(spec=spec) for spec in specs])
        accepted += [spec for spec, (why, _) in zip(specs, results, strict=True) if why is Accepted.NEW]
        if any(why is Accepted.UNAVAILABLE for why, _ in results):
            return accepted
        assert len(accepted) < 20_000, "there is no mark"


@pytest.mark.row("F32")
async def test_jobs_are_refused_below_maxmemory_and_taken_again_when_there_is_room(
    store: JobStore, server: redis.Redis
) -> None:
    limit = 16 * MIB
    server.config_set("maxmemory", limit)
    async with watched(store):
        jobs = await fill(store, extra="x" * 20_000)
    assert used(server) < limit / 2, "the rest is for those that are accepted"
    for spec in jobs[: len(jobs) // 2]:
        await store.cancel(spec, None, 0)
    await store.remove([job.spec.id for job in (await store.reap(1000, 60)).jobs])
    async with watched(store):
        assert await fill(store, extra="x" * 20_000)


@pytest.mark.row("F12", "F32")
async def test_an_operator_can_act_when_the_memory_is_full(store: JobStore, server: redis.Redis) -> None:
    waiting, ended = await submitted(store, "a"), await submitted(store, "b")
    [lease] = [
        lease for lease in (await store.lease(Kind.DOWNLOAD, "me", 2, 60)).leases if lease.group == "b"
    ]
    await store.settle("me", [downloaded(lease, FAILED, PLAN, 60)])
    [callback] = (await store.lease(Kind.CALLBACK, "me", 1, 60)).leases
    delivery = CallbackOutcome(verdict=Verdict.FAILED, error="e")
    await store.settle("me", [closed(callback, delivery, 60, PLAN.limit)])
    server.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailable, match="maxmemory"):
        await store.submit([Submission(spec=spec_for(store))])
    for name in ("a", "never had a job"):
        for changes in ({"paused": True}, {"limit": 7}, {"rate": 1.5}, {"paused": False}, {"cooling": None}):
            assert await store.adjust(name, changes) is not None  # type: ignore[arg-type]  # of one key each
    assert await store.retry(ended.id, download=False, limit=1) is Changed.DONE
    assert await store.cancel(waiting, None, 60) is Changed.DONE
