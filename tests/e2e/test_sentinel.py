"""The store behind Sentinel: a job end to end, failovers. Fault F11 as far as issue 2 goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import trio

from servers.fleet import Tables, job_for, open_fleet
from servers.origin import Origin
from servers.sink import Sink
from servers.valkey_groups import Watched, until, watched_by_sentinel

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(120)]


@pytest.fixture
def watched(folder: Path) -> Iterator[Watched]:
    with watched_by_sentinel(folder) as servers:
        yield servers


@pytest.mark.row("F11")
async def test_jobs_survive_failovers(watched: Watched, folder: Path, sink: Sink, origin: Origin) -> None:
    tables: Tables = {
        "redis": {"url": "redis://", "durability": "replicated", "timeout": 1.0},
        "redis.sentinel": {"master": "mymaster", "nodes": [f"127.0.0.1:{watched.sentinel_port}"]},
    }
    async with open_fleet(folder, None, tables) as fleet:
        run = await fleet.start("run")

        async def flows(number: int) -> None:
            """Clients try again at a 503; what is accepted is done."""
            with trio.fail_after(20):
                while True:
                    answer = await fleet.client.post(
                        "/download", json=job_for(origin.url(f"/bytes/{number}"), sink.url())
                    )
                    if answer.status_code == 201:
                        break
                    assert answer.status_code == 503, answer.text
                    await trio.sleep(0.1)
                fleet.accepted.append(answer.json()["id"])
                await sink.heard_of(answer.json()["id"])

        await flows(1)
        # Clean: the old primary lives on as a replica and answers READONLY.
        await trio.to_thread.run_sync(watched.fail_over)
        await flows(2)
        await trio.to_thread.run_sync(until, watched.is_ready, "replication the other way round")
        held = [await fleet.post(**job_for(origin.url("/slow/1/9"), sink.url())) for _ in range(3)]
        old = await trio.to_thread.run_sync(watched.primary_port)
        watched.nodes[old].kill()
        # What was acknowledged as replicated is there, and is done.
        await sink.heard_of(*held, seconds=30)
        new = await trio.to_thread.run_sync(watched.primary_port)
        assert new != old
        with redis.Redis(port=new, decode_responses=True) as client:
            assert all(client.exists(f"downloader:1:{{0}}:job:{job_id}") for job_id in fleet.accepted)
        # With nobody to replicate to, nothing is acknowledged.
        answer = await fleet.client.post("/download", json=job_for(origin.url("/bytes/3"), sink.url()))
        assert answer.status_code == 503
        assert run.process.returncode is None
        await fleet.stop_all()
