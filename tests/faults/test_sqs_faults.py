"""Fault F18 for SQS: errors, throttling, missing queues, no answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from servers import aws_front
from servers.aws import CREDENTIALS, REGION, Moto
from servers.aws_front import Front
from servers.fleet import Tables, job_for, open_fleet
from servers.origin import Origin
from servers.sqs import error, open_sqs_proxy

pytestmark = [pytest.mark.slow, pytest.mark.plugin, pytest.mark.fault, pytest.mark.timeout(120)]

MISSING = "AWS.SimpleQueueService.NonExistentQueue"
ATTEMPTS = 4
"""The first attempt, and one for each delay in the retry schedule of the tests."""


@pytest.fixture(autouse=True)
def queue(moto: Moto) -> None:
    moto.sqs.create_queue(QueueName="jobs")


@pytest.fixture
async def proxy(moto: Moto) -> AsyncIterator[Front]:
    async with open_sqs_proxy(moto) as running:
        yield running


def tables_for(server: Moto | Front, *, timeout: float = 1.0, **notifier: Any) -> Tables:
    section = {"region": REGION, "endpoint_url": server.url, "timeout": timeout}
    return {"backends.sqs": section, **({"notifier": notifier} if notifier else {})}


def bodies(moto: Moto, name: str = "jobs") -> list[dict[str, Any]]:
    """The bodies of up to ten messages that a consumer of the queue gets."""
    url = moto.sqs.get_queue_url(QueueName=name)["QueueUrl"]
    answer = moto.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)
    return [json.loads(message["Body"]) for message in answer.get("Messages", [])]


FAULTS: dict[str, tuple[str, aws_front.Rule, str]] = {
    "500": (
        "SendMessageBatch",
        aws_front.answer(aws_front.response(500, b"oops", Content_Type="text/html")),
        "SQS answered 500",
    ),
    "missing": (
        "GetQueueUrl",
        aws_front.answer(error(400, MISSING)),
        f"queue jobs does not exist or may not be used ({MISSING})",
    ),
    "hang": ("SendMessageBatch", aws_front.hang, "SQS gave no answer"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.row("F18")
async def test_f18_what_does_not_pass_is_a_failed_callback_with_a_reason(
    folder: Path, origin: Origin, moto: Moto, proxy: Front, fault: str
) -> None:
    operation, rule, reason = FAULTS[fault]
    proxy.on(operation, rule)
    async with open_fleet(folder, None, tables_for(proxy)) as fleet:
        run = await fleet.start("run", environ=CREDENTIALS)
        job_id = await fleet.post(**job_for(origin.url("/bytes/10"), "jobs", callback_type="sqs"))
        await run.event("callback.failed", job_id=job_id)
        assert proxy.counts[operation] == ATTEMPTS
        job = await fleet.job(job_id)
        assert (job["state"], job["callback"]["state"]) == ("succeeded", "failed")
        assert reason in json.dumps(job["callback"]), job
        assert not run.events("backend.unhealthy"), "the peer is at fault, not the plugin"

        # The callback was kept, and can be sent again when SQS works.
        proxy.heal()
        assert (await fleet.client.post(f"/retry/{job_id}")).status_code == 201
        await run.event("callback.delivered", job_id=job_id)
        assert [one["job_id"] for one in bodies(moto)] == [job_id]
        await fleet.stop_all()


@pytest.mark.row("F18")
async def test_f18_an_sqs_that_comes_back_gets_what_it_missed(
    folder: Path, origin: Origin, moto: Moto
) -> None:
    async with open_fleet(folder, None, tables_for(moto, retry_schedule=[0.3] * 60)) as fleet:
        run = await fleet.start("run", environ=CREDENTIALS)
        first = await fleet.post(**job_for(origin.url("/bytes/10"), "jobs", callback_type="sqs"))
        await run.event("callback.delivered", job_id=first)
        moto.kill()
        ids = await fleet.post_all(
            [job_for(origin.url("/bytes/10"), "jobs", callback_type="sqs", limit=3) for _ in range(3)]
        )
        await run.event("callback.retry")
        assert len(run.events("callback.delivered")) == 1
        await trio.to_thread.run_sync(moto.start)
        moto.sqs.create_queue(QueueName="jobs")
        for job_id in ids:
            await run.event("callback.delivered", job_id=job_id)
        assert {one["job_id"] for one in bodies(moto)} == set(ids)
        await fleet.stop_all()


@pytest.mark.row("F18")
async def test_f18_a_stop_while_sqs_hangs_is_in_time(folder: Path, origin: Origin, proxy: Front) -> None:
    proxy.on("*", aws_front.hang)
    async with open_fleet(folder, None, tables_for(proxy, timeout=30.0)) as fleet:
        run = await fleet.start("run", environ=CREDENTIALS)
        job_id = await fleet.post(**job_for(origin.url("/bytes/10"), "jobs", callback_type="sqs"))
        await proxy.seen("GetQueueUrl")
        await run.stop()
        assert run.events("callback.released", job_id=job_id)

        # The callback was handed back without a counted attempt, and the next instance delivers it.
        proxy.heal()
        again = await fleet.start("run", environ=CREDENTIALS)
        line = await again.event("callback.delivered", job_id=job_id)
        assert line["attempt"] == 1
        await fleet.stop_all()
