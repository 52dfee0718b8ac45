"""Calls of scripts that begin at the same time travel in one round trip."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from downloader.errors import StoreUnavailable
from downloader.model import Kind
from downloader.store import Accepted, JobStore, LeaseBatch, Submission
from downloader.store.client import MANY_CALLS, MAX_ROWS
from servers.jobs import leased, spec_for, submitted
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
async def test_a_lease_call_finds_what_is_submitted_also_where_the_scripts_were_lost(
    store: JobStore, raw: RawStore
) -> None:
    await ask(store)
    raw.command("SCRIPT", "FLUSH")
    await ask(store)  # only the submission is unknown now
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


def scripts_run(raw: RawStore) -> int:
    stats = raw.command("INFO", "commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("eval", "evalsha"))


async def test_a_call_submits_a_hundred_jobs_at_most(store: JobStore, raw: RawStore) -> None:
    jobs = [Submission(spec=spec_for(store)) for _ in range(2 * MAX_ROWS + 1)]
    before = scripts_run(raw)
    assert await store.submit(jobs) == [(Accepted.NEW, job.spec.id) for job in jobs]
    assert scripts_run(raw) - before in (3, 4), "a script that the server lacks is sent again"
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
