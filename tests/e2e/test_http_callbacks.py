"""Callbacks over HTTP that were not delivered: sent again by hand, and handed back by a stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from servers.fleet import QUICK, History, job_for, merged, open_fleet
from servers.origin import Origin
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = pytest.mark.slow


@pytest.mark.row("F16")
async def test_a_failed_callback_is_sent_again(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    soon = {"notifier": {"deletion_interval": 1.0}}
    async with open_fleet(folder, server, soon) as fleet:
        run = await fleet.start("run")
        job_id = await fleet.post(**job_for(origin.url("/bytes/10"), sink.url("/broken")))
        await run.event("callback.failed", job_id=job_id)
        sink.repaired = True
        assert (await fleet.client.get(f"/files/{job_id[:3]}/{job_id}")).status_code == 200
        answer = await fleet.client.post(f"/retry/{job_id}")
        assert (answer.status_code, answer.headers["location"]) == (201, f"/jobs/{job_id}")
        await run.event("callback.delivered", job_id=job_id)
        deliveries = sink.by_job()[job_id]
        assert len(deliveries) == 5
        assert len({(one.webhook_id, one.body) for one in deliveries}) == 1
        # Delivered at last: file and record go.
        await run.event("file.deleted", job_id=job_id)
        assert (await fleet.client.get(f"/files/{job_id[:3]}/{job_id}")).status_code == 404
        await fleet.stop_all()
        with History(fleet, sink, url=server.url) as history:
            history.check_forgotten()


async def test_a_second_result_of_a_job_has_another_id(
    server: Valkey, folder: Path, sink: Sink, origin: Origin
) -> None:
    async with open_fleet(folder, server) as fleet:
        run = await fleet.start("run")
        job_id = await fleet.post(**job_for(origin.url("/status/404"), sink.url("/broken")))
        for count in (1, 2):
            await run.event("callback.failed", job_id=job_id, count=count)
            assert (await fleet.client.post(f"/retry/{job_id}?download=1")).status_code == 201
        sink.repaired = True
        await run.event("callback.delivered", job_id=job_id)
        ids = [one.webhook_id for one in sink.by_job()[job_id]]
        assert ids[:4] == [job_id] * 4
        assert [len(set(ids[:4])), len(set(ids[4:8])), len(set(ids[8:])), len(set(ids))] == [1, 1, 1, 3]
        assert {one.payload["job_id"] for one in sink.received} == {job_id}
        await fleet.stop_all()


@pytest.mark.row("F5")
async def test_a_stop_hands_a_callback_back(server: Valkey, folder: Path, sink: Sink, origin: Origin) -> None:
    async with open_fleet(folder, server, merged(QUICK, {"backends.http": {"timeout": 30.0}})) as fleet:
        notifier, _, _ = await fleet.start_all("notifier", "processor", "api")
        job_id = await fleet.post(**job_for(origin.url("/bytes/10"), sink.url("/hang")))
        await sink.heard_of(job_id)
        await notifier.stop()
        assert notifier.events("callback.released", job_id=job_id)
        await fleet.stop_all()
        with History(fleet, sink, url=server.url) as history:
            assert history.leases() == 0
            record = history.record(job_id)
            assert (record.callback["state"], record.callback.get("attempts")) == ("pending", None)
