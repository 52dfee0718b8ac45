"""The store on a Cluster: all keys of an aggregation in one slot, jobs end to end."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from servers.fleet import job_for, open_fleet
from servers.origin import Origin
from servers.sink import Sink
from servers.valkey_groups import open_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

IDLE_START_S = 2.0


@pytest.fixture
def ports() -> Iterator[list[int]]:
    with open_cluster() as opened:
        yield [node.port for node in opened]


async def test_jobs_end_to_end(ports: list[int], folder: Path, sink: Sink, origin: Origin) -> None:
    # A busy machine may take a second for an answer, and a silent shard is refused at once.
    tables = {"redis": {"url": f"redis://127.0.0.1:{ports[0]}", "cluster": True, "timeout": 10}}
    async with open_fleet(folder, None, tables) as fleet:
        run = await fleet.start("run")
        await fleet.start("processor")
        jobs = [
            job_for(origin.url(f"/bytes/{n}"), sink.url(), group=f"group {n % 12}", limit=2)
            for n in range(60)
        ]
        ids = await fleet.post_all(jobs)
        await sink.heard_of(*ids)
        assert {(await fleet.job(job_id))["state"] for job_id in ids[:12]} == {"succeeded"}
        aggregations = (await fleet.client.get("/dashboard/aggregations")).json()
        assert aggregations == []
        assert (await fleet.client.get("/stats/processor")).status_code == 200
        await run.event("callback.delivered", count=60)
        # On an idle fleet too: each node's messages are heard.
        spans = []
        for number in range(6):
            began = time.monotonic()
            job_id = await fleet.post(**job_for(origin.url("/bytes/1"), sink.url(), group=f"late {number}"))
            [callback] = await sink.heard_of(job_id)
            spans.append(callback.at - began)
        assert sorted(spans)[3] < IDLE_START_S, spans
        await fleet.stop_all()
        assert fleet.all_events("store.unavailable") == []

    shards: defaultdict[str, set[str]] = defaultdict(set)
    slots: defaultdict[str, set[int]] = defaultdict(set)
    for port in ports:
        with redis.Redis(port=port, decode_responses=True) as client:
            assert not {"cmdstat_keys", "cmdstat_scan"} & client.info("commandstats").keys()
            for key in client.keys("*"):
                shard = key.split("{")[1].split("}")[0]
                slots[shard].add(client.execute_command("CLUSTER", "KEYSLOT", key))
                if ":job:" in key:
                    shards[shard].add(key.rpartition(":")[2])
                elif key.endswith(":ended"):
                    shards[shard] |= set(client.hkeys(key))
    assert sum(map(len, shards.values())) == 66
    assert len(shards) > 1
    assert all(len(found) == 1 for found in slots.values())
    # Every aggregation's jobs are in the shard that the API chose by its name.
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for index, job_id in enumerate(ids):
        groups[f"group {index % 12}"] |= {shard for shard, found in shards.items() if job_id in found}
    assert all(len(found) == 1 for found in groups.values())
