"""Callbacks over SQS: from `POST /download` to a consumer of the queue."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from servers.aws import CREDENTIALS, REGION, Moto
from servers.fleet import Fleet, job_for, open_fleet
from servers.origin import Origin

pytestmark = [pytest.mark.slow, pytest.mark.plugin, pytest.mark.timeout(120)]


@asynccontextmanager
async def a_run(folder: Path, moto: Moto, **section: Any) -> AsyncIterator[Fleet]:
    """`downloader run` with http and sqs, with boto3's usual credentials."""
    tables = {"backends.sqs": {"region": REGION, "endpoint_url": moto.url, **section}}
    async with open_fleet(folder, None, tables) as fleet:
        await fleet.start("run", environ=CREDENTIALS)
        yield fleet
        await fleet.stop_all()


def consume(moto: Moto, name: str, count: int) -> list[dict[str, Any]]:
    """A consumer: receives and deletes until so many messages have arrived."""
    url = moto.sqs.get_queue_url(QueueName=name)["QueueUrl"]
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 30
    while len(found) < count and time.monotonic() < deadline:
        answer = moto.sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10,
            WaitTimeSeconds=1,
            MessageSystemAttributeNames=["All"],
        )
        for message in answer.get("Messages", []):
            found.append({**json.loads(message["Body"]), "attributes": message["Attributes"]})
            moto.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return found


async def received(moto: Moto, name: str, count: int) -> list[dict[str, Any]]:
    return await trio.to_thread.run_sync(partial(consume, moto, name, count))


async def test_every_form_of_a_destination(folder: Path, origin: Origin, moto: Moto) -> None:
    url = moto.sqs.create_queue(QueueName="jobs")["QueueUrl"]
    async with a_run(folder, moto) as fleet:
        forms = ["jobs", "aws.com/sqs/jobs", url]
        ids = await fleet.post_all(
            [
                job_for(origin.url("/bytes/10"), form, callback_type="sqs", extra=form, limit=3)
                for form in forms
            ]
        )
        found = {one["extra"]: one for one in await received(moto, "jobs", len(forms))}
        assert [found[form]["job_id"] for form in forms] == ids
        for one in found.values():
            assert (one["success"], one["size"], one["attempts"]) == (True, 10, 1)
            file = await fleet.client.get(one["download_url"])
            assert len(file.content) == 10
        await fleet.running[0].event("callback.delivered", count=len(forms))
        job = await fleet.job(ids[0])
        assert (job["callback"]["type"], job["callback"]["state"]) == ("sqs", "succeeded")
    assert await trio.to_thread.run_sync(messages_left, moto, "jobs") == 0


async def test_a_fifo_queue_is_ordered_by_aggregation(folder: Path, origin: Origin, moto: Moto) -> None:
    moto.sqs.create_queue(QueueName="jobs.fifo", Attributes={"FifoQueue": "true"})
    async with a_run(folder, moto) as fleet:
        ids = await fleet.post_all(
            [
                job_for(origin.url("/bytes/1"), "jobs.fifo", callback_type="sqs", group=group)
                for group in ("example.org", "a b", "example.org")
            ]
        )
        found = {one["job_id"]: one["attributes"] for one in await received(moto, "jobs.fifo", 3)}
        assert [found[job_id]["MessageGroupId"] for job_id in ids] == ["example.org", "a%20b", "example.org"]
        assert [found[job_id]["MessageDeduplicationId"] for job_id in ids] == ids


def messages_left(moto: Moto, name: str) -> int:
    url = moto.sqs.get_queue_url(QueueName=name)["QueueUrl"]
    answer = moto.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])
    return int(answer["Attributes"]["ApproximateNumberOfMessages"])
