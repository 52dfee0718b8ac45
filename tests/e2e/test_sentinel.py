"""The store behind Sentinel: a job end to end, failovers. Fault F11."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trio

from downloader.config import RedisSettings
from downloader.store import asyncio_loop, open_store
from servers.fleet import BRIEF, RECOVERY_S, History, job_for, merged, open_fleet
from servers.origin import Origin, gate, respond
from servers.sink import Sink
from servers.valkey_groups import AGREE_S, Watched, until, watched_by_sentinel

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(180)]


@pytest.fixture
def watched(folder: Path) -> Iterator[Watched]:
    with watched_by_sentinel(folder) as servers:
        yield servers


def replicated(watched: Watched) -> dict[str, dict[str, Any]]:
    """Settings of a fleet on these servers."""
    return {
        "redis": {"url": "redis://", "durability": "replicated", "timeout": 2.5},
        "redis.sentinel": {"master": "mymaster", "nodes": [f"127.0.0.1:{watched.sentinel_port}"]},
    }


async def test_a_store_that_closes_leaves_no_connection_to_a_sentinel(watched: Watched) -> None:
    settings = RedisSettings.model_validate(
        {"sentinel": {"master": "mymaster", "nodes": [f"127.0.0.1:{watched.sentinel_port}"]}}
    )
    with watched.sentinel as client:

        def connections() -> int:
            return len(client.client_list())

        before = connections()
        async with asyncio_loop():
            async with open_store(settings):
                assert connections() > before
            await trio.to_thread.run_sync(until, lambda: connections() <= before, "the end of connections")


@pytest.mark.row("F11")
async def test_jobs_survive_failovers(watched: Watched, folder: Path, sink: Sink, origin: Origin) -> None:
    async with open_fleet(folder, None, replicated(watched)) as fleet:
        run = await fleet.start("run")

        async def flows(number: int) -> None:
            """What is accepted is done."""
            await sink.heard_of(await fleet.insist(**job_for(origin.url(f"/bytes/{number}"), sink.url())))

        await flows(1)
        # Clean: the old primary lives on as a replica and answers READONLY.
        await trio.to_thread.run_sync(watched.fail_over)
        await flows(2)
        await trio.to_thread.run_sync(until, watched.is_ready, "replication the other way round")
        held = [await fleet.insist(**job_for(origin.url("/slow/1/9"), sink.url())) for _ in range(3)]
        old = await trio.to_thread.run_sync(watched.primary_port)
        watched.nodes[old].kill()
        # What was acknowledged as replicated is there, and is done.
        await sink.heard_of(*held, seconds=AGREE_S)
        new = await trio.to_thread.run_sync(watched.primary_port)
        assert new != old
        with redis.Redis(port=new, decode_responses=True) as client:
            ended = set(client.hkeys("downloader:1:{0}:ended"))
            left = set(fleet.accepted) - ended
            assert all(client.exists(f"downloader:1:{{0}}:job:{job_id}") for job_id in left)
        # With nobody to replicate to, nothing is acknowledged.
        answer = await fleet.client.post("/download", json=job_for(origin.url("/bytes/3"), sink.url()))
        assert answer.status_code == 503
        assert run.process.returncode is None
        await fleet.stop_all()


@pytest.mark.row("F11")
async def test_f11_a_replica_that_is_behind_takes_over(
    watched: Watched, folder: Path, sink: Sink, origin: Origin
) -> None:
    hold = trio.Event()
    origin.on("/held", gate(hold, respond(200, b"held")))
    origin.on("/unheard", gate(hold, respond(404)))
    async with open_fleet(folder, None, merged(BRIEF, replicated(watched))) as fleet:
        run = await fleet.start("run")
        ids = [await fleet.insist(**job_for(origin.url("/held"), sink.url(), limit=2)) for _ in range(4)]
        await origin.seen("/held", 2)
        old = await trio.to_thread.run_sync(watched.primary_port)
        # From here on the replica gets nothing: what is done now is lost with the primary.
        watched.nodes[old].command("ACL", "SETUSER", "default", "-psync", "-sync")
        watched.nodes[old].command("CLIENT", "KILL", "TYPE", "replica")
        job = job_for(origin.url("/unheard"), sink.url(), group="unheard")
        answer = await fleet.client.post("/download", json=job)
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        await origin.seen("/unheard")
        watched.nodes[old].kill()
        await trio.to_thread.run_sync(until, lambda: watched.primary_port() != old, "a new primary")
        # The new primary has never heard of that one's job, and takes its result from nobody.
        hold.set()
        await sink.heard_of(*ids, seconds=RECOVERY_S)
        await run.event("lease.lost")
        await run.stop()
        new = await trio.to_thread.run_sync(watched.primary_port)
        with History(fleet, sink, url=f"redis://127.0.0.1:{new}") as history:
            assert history.check()["succeeded"] == len(ids)
