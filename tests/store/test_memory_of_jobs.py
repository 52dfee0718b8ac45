"""Memory of the server: new jobs leave room for accepted jobs, and an operator can act in a full store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import redis
import trio
from cryptography.fernet import Fernet
from pydantic import SecretStr

from downloader.config import RedisSettings
from downloader.model import CallbackOutcome, FileFacts, JobSpec, Kind, Outcome, ResponseMetadata, Verdict
from downloader.phases import Phases
from downloader.store import (
    Accepted,
    CallbackPlan,
    Changed,
    JobStore,
    Listed,
    Settled,
    StoreUnavailable,
    Submission,
    asyncio_loop,
    ended,
    open_sealer,
    open_store,
)
from servers.jobs import closed, downloaded, spec_for, submitted
from servers.valkey import Valkey

MIB = 2**20
PLAN = CallbackPlan(queue="http 127.0.0.1", limit=1000)
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
    limit = 64 * MIB  # buffers of a megabyte come and go
    server.config_set("maxmemory", limit)
    async with watched(store):
        assert not store.memory_is_full()
        jobs = await fill(store, extra="x" * 20_000)
        assert store.memory_is_full()
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
        lease for lease in (await store.lease(Kind.DOWNLOAD, "me", 2, 60)).leases if lease.queue == "b"
    ]
    await store.settle("me", [downloaded(lease, FAILED, PLAN, 60)])
    [callback] = (await store.lease(Kind.CALLBACK, "me", 1, 60)).leases
    delivery = CallbackOutcome(verdict=Verdict.FAILED, error="e")
    await store.settle("me", [closed(callback, delivery, 60, PLAN.limit)])
    server.config_set("maxmemory", 1)
    with pytest.raises(StoreUnavailable, match="maxmemory"):
        await store.submit([Submission(spec=spec_for(store))])
    for paused in (True, False):
        await store.pause_all(paused=paused)
    for name in ("a", "never had a job"):
        for changes in ({"paused": True}, {"limit": 7}, {"rate": 1.5}, {"paused": False}, {"cooling": None}):
            assert await store.adjust(name, changes) is not None  # type: ignore[arg-type]  # of one key each
    assert await store.retry(ended.id, download=False, limit=1) is Changed.DONE
    assert await store.cancel(waiting, None, 60) is Changed.DONE


@pytest.mark.row("F32")
async def test_the_callback_of_a_group_needs_room(store: JobStore, server: redis.Redis) -> None:
    server.config_set("maxmemory", 1)
    async with watched(store):
        with pytest.raises(StoreUnavailable, match="memory"):
            await store.set_group_callback(spec_for(store, "g"), PLAN)
    assert await store.group("g") is None


async def deliver(store: JobStore) -> None:
    """End all jobs well, with their callbacks."""
    outcome = Outcome(
        verdict=Verdict.SUCCEEDED,
        response_code=200,
        file=FileFacts(size=10_240, sha256="7f" * 32, mime_type="image/png"),
    )
    delivered = CallbackOutcome(verdict=Verdict.SUCCEEDED)
    while leases := (await store.lease(Kind.DOWNLOAD, "host-processor-12345-abcd", 100, 60)).leases:
        await store.settle(
            "host-processor-12345-abcd", [downloaded(lease, outcome, PLAN, 60) for lease in leases]
        )
    while leases := (await store.lease(Kind.CALLBACK, "host-notifier-12345-abcd", 100, 60)).leases:
        await store.settle(
            "host-notifier-12345-abcd", [closed(lease, delivered, 60, 1000) for lease in leases]
        )


async def test_a_job_that_has_ended_takes_about_400_bytes(store: JobStore, server: redis.Redis) -> None:
    async def submit(count: int) -> None:
        specs = [
            spec_for(
                store,
                "a",
                aggr_limit=1000,
                url=f"http://127.0.0.1:8000/file/{number:08}.png?".ljust(60, "x"),
                callback_dst="http://127.0.0.1:8001/callback",
                request_headers={"Authorization": "Bearer 0123456789"},
                created_ms=1_764_000_000_000,
            )
            for number in range(count)
        ]
        await store.submit([Submission(spec=spec) for spec in specs])

    await submit(1)
    await deliver(store)
    shared = server.dbsize()
    await submit(299)
    await deliver(store)
    assert server.dbsize() == shared, "no job has a key"
    keys = [f"downloader:1:{{0}}:{name}" for name in ("ended", "reap_ended")]
    taken = sum(server.memory_usage(key, samples=0) or 0 for key in keys)
    assert 200 < taken / 300 <= 410, "398 on Valkey, 402 on redis-server"


@pytest.mark.row("H30")
@pytest.mark.parametrize("plan", [None, PLAN])
async def test_a_cancelled_job_gives_its_memory_back(
    store: JobStore, server: redis.Redis, plan: CallbackPlan | None
) -> None:
    """At once, or when its callback was delivered."""
    size = 200_000
    fields = {"callback_type": "http", "callback_dst": "http://c/"} if plan else {}
    jobs = [
        await submitted(store, extra="x" * size, callback_error_type="", callback_error_dst="", **fields)
        for _ in range(20)
    ]
    before = used(server)
    for _ in range(2):  # the second is a repetition
        assert {await store.cancel(job, plan, 600) for job in jobs} == {Changed.DONE}
    if plan:
        leases = (await store.lease(Kind.CALLBACK, "me", 100, 60)).leases
        delivered = CallbackOutcome(verdict=Verdict.SUCCEEDED)
        await store.settle("me", [closed(lease, delivered, 600, PLAN.limit) for lease in leases])
    assert before - used(server) > 20 * size * 0.9
    view = await store.get(jobs[0].id)
    assert view is not None
    assert (view.download.state, view.download.attempts, view.download.deliveries) == ("cancelled", 0, 0)
    assert view.outcome is not None
    assert (view.outcome.verdict, view.outcome.error_code) == (Verdict.FAILED, "cancelled")
    assert [failure.error for failure in view.download.errors] == ["cancelled by a client"]
    assert view.callback is None if plan is None else view.callback is not None
    assert view.kept_until is not None
    [row, *_] = (await store.jobs(Listed.FINISHED, "", "", 99)).jobs
    assert (row.state, row.error, row.error_code) == ("cancelled", "cancelled by a client", "cancelled")
    assert await store.retry(jobs[0].id, download=True, limit=1) is Changed.CONFLICT


@pytest.mark.row("H30")
async def test_the_holder_of_a_cancelled_job_finds_its_records(store: JobStore, server: redis.Redis) -> None:
    spec = await submitted(store)
    [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 60)).leases
    await store.cancel(spec, PLAN, 600)
    [callback] = (await store.lease(Kind.CALLBACK, "me", 1, 60)).leases
    await store.settle("me", [closed(callback, CallbackOutcome(verdict=Verdict.SUCCEEDED), 60, 9)])
    assert await store.settle("me", [downloaded(lease, FAILED, None, 60)]) == [Settled.CANCELLED]
    assert server.exists("downloader:1:{0}:running:download:a") == 0


FULL = JobSpec(
    id="0000000000000a",
    aggr_id="a b: ü",
    aggr_limit=3,
    url="https://h.test/a?b=c",
    callback_type="http",
    callback_dst="https://user:secret@c.test/done",
    callback_error_type="sqs",
    callback_error_dst="q",
    extra="one\ntwo",
    request_headers={"Cookie": "secret"},
    priority=7,
    subpath="s",
    key="k/{sha256}",
    s3_bucket="b",
    s3_region="r",
    created_ms=1_764_000_000_000,
    unknown={"novelty": [1]},
)


@pytest.mark.parametrize("sealed", [False, True])
def test_a_record_has_what_people_see_and_no_secret(sealed: bool) -> None:  # noqa: FBT001  # drawn
    sealer = open_sealer([SecretStr(Fernet.generate_key().decode())]) if sealed else None
    outcome = Outcome(
        verdict=Verdict.SUCCEEDED,
        file=FileFacts(sha256="7f" * 32),
        response=ResponseMetadata(final_url="http://h/x?a=secret"),
    )
    text = ended.record(FULL, outcome, sealer.seal if sealer else None)
    assert "secret" not in text
    job = ended.parse(f"12345678\n{text}\nf2000\ns-20\nF30\nS5\nDlog=1 a\r2 b\nCattempts=3\nR")
    final_url = job.download.pop("final_url")
    assert (sealer.unseal(final_url) if sealer else final_url) == "http://h/x?a=***"
    kept = JobSpec.from_json(FULL.id, job.spec, sealer.unseal if sealer else lambda _: None)
    for name in (
        "aggr_id",
        "extra",
        "priority",
        "subpath",
        "key",
        "s3_bucket",
        "s3_region",
        "created_ms",
        "unknown",
    ):
        assert getattr(kept, name) == getattr(FULL, name)
    assert (kept.url, kept.callback_dst) == ("https://h.test/a?b=***", "https://c.test/done")
    assert kept.callback(success=True) == (kept.callback_type, kept.callback_dst)
    assert job.download == {
        "state": "succeeded",
        "attempts": "1",
        "deliveries": "1",
        "code": "",
        "status": "200",
        "finished": "2000",
        "started": "1980",
        "sha256": "7f" * 32,
        "log": "1 a\n2 b",
    }
    assert job.callback == {
        "state": "succeeded",
        "attempts": "3",
        "deliveries": "1",
        "finished": "2030",
        "started": "2005",
    }


async def test_lists_have_the_newest_first_whatever_the_end(store: JobStore) -> None:
    for number in range(7):
        await submitted(store, str(number))
        [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 60)).leases
        outcome = FAILED if number in (1, 2, 5) else Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
        await store.settle("me", [downloaded(lease, outcome, None, 60 + number // 2)])
    for count in (1, 2, 3, 9):
        names: list[str] = []
        cursor = ""
        while True:
            page = await store.jobs(Listed.FINISHED, "", cursor, count)
            names += [job.aggr_id for job in page.jobs]
            if not (cursor := page.cursor):
                break
            assert len(names) <= 7
        assert sorted(names) == [str(number) for number in range(7)]
        assert [int(name) // 2 for name in names] == [3, 2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize("sealed", [False, True])
async def test_the_phases_of_the_last_attempt(sealed: bool, bounded: Valkey, server: redis.Redis) -> None:  # noqa: FBT001  # drawn
    keys = [SecretStr(Fernet.generate_key().decode())] if sealed else []
    phases = Phases({"queue": 0.002, "body": 61.0}, "127.0.0.1", [(302, "http://h/path")])
    failed, quick, slow = (
        Outcome(verdict=Verdict.RETRY, error="e", phases=phases),
        Outcome(verdict=Verdict.SUCCEEDED, response_code=200),
        Outcome(verdict=Verdict.SUCCEEDED, response_code=200, phases=phases),
    )
    async with (
        asyncio_loop(),
        open_store(RedisSettings(url=bounded.url, timeout=30, encryption_keys=keys)) as store,
    ):
        for last, kept in ((quick, None), (slow, phases)):
            job = await submitted(store, last.verdict + str(kept))
            for outcome, shown in ((failed, phases), (last, kept)):
                [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 60)).leases
                settlement = downloaded(lease, outcome, None, 60)
                await store.settle("me", [settlement])
                view = await store.get(job.id)
                assert view is not None
                assert view.outcome is not None
                assert view.outcome.phases == shown
                assert view.download.instance == ("me" if outcome is failed else ""), (
                    "an ended job forgets it"
                )
            record = str(server.hget("downloader:1:{0}:ended", job.id))
        assert ("r302:http://h/path" in record) is not sealed


async def test_the_phases_of_an_earlier_attempt_go(store: JobStore, server: redis.Redis) -> None:
    phases = Phases({"queue": 0.002}, "127.0.0.1")

    def has_phases(job_id: str) -> bool:
        return bool(server.hexists(f"downloader:1:{{0}}:download:task:{job_id}", "phases"))

    async def attempted(verdict: Verdict, phases: Phases | None) -> bool:
        """Whether phases are kept after an attempt."""
        [lease] = (await store.lease(Kind.DOWNLOAD, "me", 1, 60)).leases
        outcome = Outcome(verdict=verdict, error="e", phases=phases)
        await store.settle("me", [downloaded(lease, outcome, None, 60)])
        return has_phases(lease.id)

    job = await submitted(store, "a")
    assert await attempted(Verdict.RETRY, phases)
    assert not await attempted(Verdict.RETRY, None)
    assert await attempted(Verdict.FAILED, phases)
    assert await store.retry(job.id, download=True, limit=1) is Changed.DONE
    assert not has_phases(job.id)
