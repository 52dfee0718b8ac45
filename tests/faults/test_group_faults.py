"""A process is killed between two steps by which a group of jobs becomes complete. Fault F38."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
import trio

from downloader.config import RedisSettings
from downloader.ids import shard_of
from downloader.model import JobSpec, Kind, Outcome, Verdict
from downloader.signals import FAILPOINT
from downloader.store import (
    CLUSTER_SHARDS,
    Accepted,
    CallbackPlan,
    Changed,
    JobStore,
    Submission,
    asyncio_loop,
    open_store,
)
from downloader.wire import Group
from servers.fleet import BRIEF, job_for, open_fleet
from servers.jobs import downloaded, spec_for
from servers.origin import Origin
from servers.sink import Sink
from servers.valkey import Valkey
from servers.valkey_groups import open_cluster

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.row("F38"), pytest.mark.timeout(120)]

POINTS = [
    ("processor", "before-complete", 1),
    ("processor", "after-complete", 1),
    ("notifier", "before-complete", 2),
    ("notifier", "after-complete", 1),
]
"""Who dies where, and how often the callback of the group arrives then."""


@pytest.mark.parametrize("case", POINTS)
async def test_f38_who_ends_the_last_job_or_sends_the_callback_dies(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, case: tuple[str, str, int]
) -> None:
    role, point, deliveries = case
    async with open_fleet(folder, server, BRIEF) as fleet:
        await fleet.start("api")
        job = job_for(origin.url("/bytes/10"), "", callback_type="none", callback_dst=None)
        await fleet.post(**job | {"group": "g"})
        callback = {"callback_type": "http", "callback_dst": sink.url(), "extra": "x"}
        assert (await fleet.client.post("/groups/g", json=callback)).status_code == 200
        assert (await fleet.client.post("/groups/g/seal")).json()["state"] == "sealed"
        failing = {role: {"environ": {"DOWNLOADER_FAILPOINT": point}}}
        victim, _ = await fleet.start_all(role, "notifier" if role == "processor" else "processor", **failing)
        assert await victim.wait() == -signal.SIGKILL
        again = await fleet.start(role)
        if point != "after-complete" or role == "processor":
            await sink.until(lambda: len(sink.received) == deliveries)
        shown = (await fleet.client.get("/groups/g")).json()
        assert (shown["state"], shown["jobs"], shown["succeeded"]) == ("complete", 1, 1)
        if role == "notifier" and point != "after-complete":
            await again.event("callback.delivered", job_id=shown["callback_id"])
        await fleet.stop_all()
        assert [one.webhook_id for one in sink.received] == [shown["callback_id"]] * deliveries
        assert {one.payload["group"] for one in sink.received} == {"g"}


CHILD = """
import sys, trio
from downloader.config import RedisSettings
from downloader.store import asyncio_loop, open_store

async def seal(url):
    async with asyncio_loop(), open_store(RedisSettings(url=url, cluster=True)) as store:
        await store.seal_group("g")

trio.run(seal, sys.argv[1])
"""

NO = Outcome(verdict=Verdict.FAILED, error="no")
PLAN = CallbackPlan(queue="http group", limit=4)


@pytest.fixture
async def cluster() -> AsyncIterator[tuple[JobStore, str]]:
    with open_cluster(primaries=1) as [node]:
        url = f"redis://127.0.0.1:{node.port}"
        async with asyncio_loop(), open_store(RedisSettings(url=url, cluster=True)) as store:
            yield store, url


async def with_jobs(store: JobStore) -> list[JobSpec]:
    """The group has a callback, and jobs in many shards, which end without one."""
    await store.set_group_callback(spec_for(store, "g", url=""), PLAN)
    nothing = {"group": "g", "callback_type": "", "callback_dst": ""}
    specs = [spec_for(store, f"aggregation {number}", **nothing) for number in range(40)]
    assert len({shard_of(spec.id, CLUSTER_SHARDS) for spec in specs}) > CLUSTER_SHARDS / 2
    results = await store.submit([Submission(spec=spec) for spec in specs])
    assert {accepted for accepted, _ in results} == {Accepted.NEW}
    return specs


async def end(store: JobStore, count: int) -> None:
    """So many jobs fail."""
    while count:
        leases = (await store.lease(Kind.DOWNLOAD, "me", count, 60)).leases
        await store.settle("me", [downloaded(lease, NO, None, 60) for lease in leases])
        count -= len(leases)


async def tend(store: JobStore) -> Group:
    """What a reaper does."""
    await store.tend_groups((await store.reap(9, 60)).groups)
    group = await store.group("g")
    assert group is not None
    return group


async def callbacks(store: JobStore) -> list[JobSpec]:
    return [lease.spec for lease in (await store.lease(Kind.CALLBACK, "me", 9, 60)).leases]


async def dies(url: str, point: str) -> None:
    """A process seals the group, and is killed meanwhile."""
    command = [sys.executable, "-c", CHILD, url]
    ran = await trio.run_process(command, check=False, env={**os.environ, FAILPOINT: point})
    assert ran.returncode == -signal.SIGKILL


async def test_f38_who_seals_a_group_on_a_cluster_dies(cluster: tuple[JobStore, str]) -> None:
    store, url = cluster
    specs = await with_jobs(store)
    await end(store, 30)
    await dies(url, "after-group-seal")
    assert (await tend(store)).state == "sealed"
    late = spec_for(store, specs[0].aggr_id, group="g")
    assert await store.submit([Submission(spec=late)]) == [(Accepted.SEALED, late.id)]
    await end(store, 9)
    assert (await tend(store)).unfinished == 1
    assert await callbacks(store) == []
    await end(store, 1)
    group = await tend(store)
    assert (group.state, group.jobs, group.failed, group.unfinished) == ("complete", 40, 40, 0)
    [spec] = await callbacks(store)
    counted = json.loads(spec.completes)
    assert (spec.id, counted["jobs"], counted["failed"]) == (group.callback_id, 40, 40)
    await tend(store)
    assert await callbacks(store) == []


async def test_f38_who_completes_a_group_on_a_cluster_dies(cluster: tuple[JobStore, str]) -> None:
    store, url = cluster
    specs = await with_jobs(store)
    await end(store, 40)
    await dies(url, "after-group-complete")
    [spec] = await callbacks(store)
    assert json.loads(spec.completes)["failed"] == 40
    assert await store.retry(specs[0].id, download=True, limit=4) is Changed.DONE
    sealed = await store.seal_group("g")
    assert sealed is not None
    assert sealed.state == "complete"
    await end(store, 1)
    group = await tend(store)
    assert (group.state, group.unfinished) == ("complete", 0)
    assert await callbacks(store) == []
    second = store.new_id("g")
    reopened = await store.reopen_group("g", second)
    assert reopened is not None
    assert reopened.state == "open"
    late = [spec_for(store, spec.aggr_id, group="g") for spec in specs]
    assert {accepted for accepted, _ in await store.submit([Submission(spec=spec) for spec in late])} == {
        Accepted.NEW
    }
    await store.cancel_all([(late[0], None)], 60)
    await end(store, 39)
    await store.seal_group("g")
    await tend(store)
    [spec] = await callbacks(store)
    assert (spec.id, json.loads(spec.completes)["jobs"]) == (second, 80)


async def test_f38_the_shard_of_the_name_loses_the_seal(cluster: tuple[JobStore, str]) -> None:
    store, url = cluster
    specs = await with_jobs(store)
    await store.seal_group("g")
    with redis.Redis.from_url(url) as raw:
        records = {key: raw.hexists(key, "spec") for key in raw.scan_iter("*:job_group:g")}
        [home] = [key for key, has_callback in records.items() if has_callback]
        raw.hdel(home, "sealed")
        await end(store, 40)
        assert (await tend(store)).state == "open"
        assert not any(raw.hexists(key, "sealed") for key in records)
    late = [spec_for(store, spec.aggr_id, group="g") for spec in specs]
    accepted = await store.submit([Submission(spec=spec) for spec in late])
    assert {answer for answer, _ in accepted} == {Accepted.NEW}
    await end(store, 40)
    await store.seal_group("g")
    assert (await tend(store)).state == "complete"
    [spec] = await callbacks(store)
    assert json.loads(spec.completes)["jobs"] == 80
