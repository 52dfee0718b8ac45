"""Records that somebody has damaged in the store: one job fails or starts anew, and all else goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from downloader.config import HostSettings, RedisSettings
from downloader.model import CallbackOutcome, JobSpec, Kind, Lease, Outcome, Verdict
from downloader.store import (
    CallbackPlan,
    JobStore,
    Listed,
    Settlement,
    asyncio_loop,
    open_store,
)
from servers.jobs import submitted
from servers.raw_store import RawStore
from servers.store_clock import StoreClock, clocked_library

LEASE_S, KEEP_S = 30, 60
PLAN = CallbackPlan(queue="http http://127.0.0.1:2", limit=99)
NUMBERS = (
    *("attempts", "deliveries", "throttled", "generation", "priority", "due", "started", "finished"),
    *("since", "status", "size"),
)

Damage = Callable[[RawStore, str], object]


def overwritten(text: str | bytes) -> Damage:
    return lambda raw, job_id: raw.command("SET", raw.key("job", job_id), text)  # type: ignore[arg-type]  # bytes


def retyped(name: str, *kind: str) -> Damage:
    """A key of another type in place of a record."""

    def damage(raw: RawStore, job_id: str) -> None:
        raw.command("DEL", raw.key(name, *kind, job_id))
        raw.command("RPUSH", raw.key(name, *kind, job_id), "x")

    return damage


def deleted(name: str, *kind: str) -> Damage:
    return lambda raw, job_id: raw.command("DEL", raw.key(name, *kind, job_id))


def with_fields(kind: str, **fields: str) -> Damage:
    return lambda raw, job_id: raw.command(
        "HSET", raw.key("task", kind, job_id), *(text for pair in fields.items() for text in pair)
    )


def without_queue(raw: RawStore, job_id: str) -> None:
    for kind in Kind:
        raw.command("HDEL", raw.key("task", kind, job_id), "group")


def ended_as(text: str) -> Damage:
    return lambda raw, job_id: raw.command("HSET", raw.key("ended"), job_id, text)


RECORDS: dict[str, Damage] = {
    "a job that is gone": deleted("job"),
    "a job that is no JSON": overwritten('{"url": "http'),
    "a job that is a list": overwritten("[1]"),
    "a job without fields": overwritten("{}"),
    "a job with fields of other types": overwritten('{"aggr_id": 1, "url": [], "host": {}, "deadline": "x"}'),
    "a job that is no UTF-8": overwritten(b'{"aggr_id": "\xff", "aggr_limit": 1, "url": "http://h"}'),
    "a job with too many brackets": overwritten("[" * 5000),
    "a job that is a list of the store": retyped("job"),
    **{
        f"{kind.value}: {name}": damage
        for kind in Kind
        for name, damage in {
            "no record": deleted("task", kind),
            "a list": retyped("task", kind),
            "an unknown state": with_fields(kind, state="eaten"),
            "no numbers": with_fields(kind, crashes="x", **dict.fromkeys(NUMBERS, "x")),
            "numbers beyond all bounds": with_fields(kind, **dict.fromkeys(NUMBERS, "9" * 25)),
        }.items()
    },
    "no queue": without_queue,
}
MOMENTS = ("failed", "callback running", "callback pending", "running", "pending")


@pytest.fixture
async def store(redis_settings: RedisSettings, clock: StoreClock) -> AsyncIterator[JobStore]:
    hosts = {"*": HostSettings(limit=9, rate=1000)}
    async with asyncio_loop(), open_store(redis_settings, hosts=hosts, library=clocked_library()) as opened:
        yield opened


class Service:
    """Works on what the store gives, as the service does."""

    def __init__(self, store: JobStore, clock: StoreClock) -> None:
        self.store, self.clock = store, clock
        self.jobs: dict[str, tuple[JobSpec, str]] = {}
        self.held: list[Lease] = []
        self.delivered: set[tuple[str, Kind]] = set()

    async def lease(self, kind: Kind) -> None:
        self.held += (await self.store.lease(kind, "me", 99, LEASE_S)).leases

    async def settle(self, verdict: Verdict = Verdict.SUCCEEDED) -> None:
        for lease in self.held:
            await self.store.renew(lease.kind, "me", [lease], LEASE_S)
            failed = verdict is Verdict.FAILED or lease.spec.damage
            reached = Verdict.FAILED if failed else verdict
            outcome = Outcome if lease.kind is Kind.DOWNLOAD else CallbackOutcome
            plan = PLAN if lease.kind is Kind.CALLBACK or not lease.spec.damage else None
            end = outcome(verdict=reached, error=lease.spec.damage)
            await self.store.settle("me", [Settlement.of(lease, end, callback=plan, keep_s=KEEP_S)])
            if reached is Verdict.SUCCEEDED:
                self.delivered.add((lease.id, lease.kind))
        self.held = []

    async def look(self) -> None:
        """All that people may ask for."""
        for which in Listed:
            await self.store.jobs(which, "a", "", 99)
        for which in (Listed.FAILED_CALLBACKS, Listed.FAILED_DOWNLOADS):
            await self.store.failures(which, "", 99)
        await self.store.unfinished("a", 99)
        await self.store.backlog(9)

    async def run(self) -> None:
        """Work until all has ended, and delete it."""
        for _ in range(3):
            for kind in Kind:
                self.clock.move(LEASE_S + 1)
                await self.store.sweep(kind)
                await self.lease(kind)
                await self.settle()
        for _ in range(2):
            self.clock.move(KEEP_S + 1)
            await self.store.remove([job.spec.id for job in (await self.store.reap(99, 1)).jobs])


async def reach(service: Service, moment: str) -> None:
    """Bring all new jobs to a moment of their life."""
    if moment == "pending":
        return
    await service.lease(Kind.DOWNLOAD)
    if moment == "running":
        return
    await service.settle(Verdict.FAILED if moment == "failed" else Verdict.SUCCEEDED)
    if moment == "callback pending":
        return
    await service.lease(Kind.CALLBACK)
    if moment == "failed":
        await service.settle(Verdict.FAILED)


@pytest.mark.slow
@pytest.mark.row("F37")
@pytest.mark.parametrize("record", RECORDS)
async def test_a_damaged_record_costs_one_job(
    raw: RawStore, store: JobStore, clock: StoreClock, record: str
) -> None:
    service = Service(store, clock)
    whole: dict[str, str] = {}
    for moment in MOMENTS:
        now = Service(store, clock)
        for act in ("", "cancel", "retry", "whole"):
            job = await submitted(store, "a", aggr_limit=99, host="h", priority=3)
            now.jobs[job.id] = job, act
        await reach(now, moment)
        service.jobs |= now.jobs
        service.held += now.held
        whole |= {job_id: moment for job_id, (_, act) in now.jobs.items() if act == "whole"}
    for job_id, (job, act) in service.jobs.items():
        if act == "whole":
            continue
        RECORDS[record](raw, job_id)
        await store.get(job_id)
        if act == "cancel":
            await store.cancel(job, PLAN, KEEP_S)
        if act == "retry":
            for download in (True, False):
                await store.retry(job_id, download=download, limit=2)
    await service.look()
    await service.settle()
    await service.run()
    assert {job_id for job_id, kind in service.delivered if kind is Kind.CALLBACK} >= {
        job_id for job_id, moment in whole.items() if moment != "failed"
    }
    left = {key.removeprefix(raw.keys.base(0)) for key in raw.command("KEYS", f"{raw.keys.base(0)}*")}
    assert {key for key in left if raw.command("PTTL", raw.keys.base(0) + key) == -1} == {"layout", "clock"}


@pytest.mark.row("F37")
@pytest.mark.parametrize("text", ["", "\nf", "x\nfx\nsx", "\nf1\ns-\n", "\nJ[", "\nh!", "\nJ[1]", "\n\n"])
async def test_a_damaged_record_of_an_ended_job_is_deleted_in_its_time(
    raw: RawStore, store: JobStore, clock: StoreClock, text: str
) -> None:
    service = Service(store, clock)
    jobs = [await submitted(store, "a", aggr_limit=2) for _ in range(2)]
    await reach(service, "callback running")
    await service.settle()
    ended_as(text)(raw, jobs[0].id)
    await service.look()
    assert len((await store.jobs(Listed.FINISHED, "a", "", 99)).jobs) == 2
    await service.run()
    assert raw.command("EXISTS", raw.key("ended")) == 0
