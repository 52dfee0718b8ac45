"""Callbacks to Kafka from `POST /download` on, through the real service, read by a real consumer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from downloader.wire import Callback
from servers.fleet import Fleet, History, Tables, job_for, open_fleet
from servers.kafka import Tansu, wait_for_records
from servers.origin import Origin
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.plugin]


@pytest.fixture
def brokers() -> Iterator[str]:
    with Tansu() as running:
        yield running.servers


def kafka(brokers: str, **more: Any) -> Tables:
    return {"backends.kafka": {"bootstrap_servers": brokers, "timeout": 10, **more}}


def to_topic(name: str) -> dict[str, str]:
    return {"callback_type": "kafka", "callback_dst": name}


async def finished(fleet: Fleet, job_id: str) -> tuple[str, str]:
    """State of the job and of the callback."""
    job = await fleet.job(job_id)
    return job["state"], job["callback"]["state"]


async def test_successes_and_failures_go_to_their_topics(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, brokers: str
) -> None:
    async with open_fleet(folder, server, kafka(brokers)) as fleet:
        run = await fleet.start("run")
        errors = {"callback_error_type": "kafka", "callback_error_dst": "errors"}
        jobs = [
            job_for(origin.url(path), sink.url(), group=f"g{number}", extra=f"x{number}")
            | to_topic("jobs")
            | errors
            for number, path in enumerate(["/bytes/10", "/bytes/20", "/status/404", "/bytes/30"])
        ]
        ids = await fleet.post_all(jobs)
        done = await wait_for_records(brokers, "jobs", 3)
        failed = await wait_for_records(brokers, "errors", 1)
        for job_id in ids:
            await run.event("callback.delivered", job_id=job_id)

        payloads = {record.key.decode(): json.loads(record.value) for record in [*done, *failed]}
        assert payloads.keys() == set(ids)
        for number, job_id in enumerate(ids):
            payload = payloads[job_id]
            assert payload.keys() == Callback.model_fields.keys()
            assert (payload["job_id"], payload["extra"]) == (job_id, f"x{number}")
            assert payload["success"] == (number != 2)
        assert [json.loads(record.value)["error_code"] for record in failed] == ["http_status"]
        assert payloads[ids[1]]["size"] == 20
        assert [await finished(fleet, job_id) for job_id in ids] == [
            ("succeeded", "succeeded"),
            ("succeeded", "succeeded"),
            ("failed", "succeeded"),
            ("succeeded", "succeeded"),
        ]
        await run.stop()
        with History(fleet, sink, url=server.url) as history:
            assert history.leases() == 0


async def test_beside_callbacks_over_http_in_two_processes(
    folder: Path, sink: Sink, origin: Origin, brokers: str
) -> None:
    async with open_fleet(folder, None, kafka(brokers)) as fleet:
        run = await fleet.start("run", "--processes", "2")
        await run.event("service.started", count=2)
        jobs = [
            job_for(origin.url(f"/bytes/{number}"), sink.url(), group=f"g{number % 5}", limit=4)
            | (to_topic("jobs") if number % 2 else {})
            for number in range(40)
        ]
        ids = await fleet.post_all(jobs)
        records = await wait_for_records(brokers, "jobs", 20)
        await sink.heard_of(*ids[::2])
        assert sorted(record.key.decode() for record in records) == sorted(ids[1::2])
        await run.stop()
