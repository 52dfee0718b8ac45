"""Fault F14: S3 answers errors, loses connections or hangs; a processor is killed during an upload."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from servers import aws_front, s3
from servers.aws import CREDENTIALS, REGION, Moto
from servers.aws_front import Front, Rule
from servers.fleet import BRIEF, RECOVERY_S, Fleet, History, Running, Tables, job_for, merged, open_fleet
from servers.origin import Origin, respond
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.plugin, pytest.mark.fault, pytest.mark.timeout(120)]

RELEASED_S = 60.0
"""A job whose file our own storage refused waits for up to 30 s before it is tried again."""

PATIENT_S = 30.0
"""The timeout of S3 after the faults: on a busy machine a request may take more than the second that is set
during the faults, and each failure would make the job wait for up to 30 s again."""

LARGE = os.urandom(12_000_000)
SMALL = os.urandom(1000)

FAULTS: Mapping[str, tuple[str, Rule]] = {
    "small-500": ("PutObject", aws_front.answer(s3.error(500, "InternalError"))),
    "small-slow": ("PutObject", aws_front.answer(s3.error(503, "SlowDown"))),
    "small-hang": ("PutObject", aws_front.hang),
    "small-lost": ("PutObject", aws_front.lose_answer),
    "begin-500": ("CreateMultipartUpload", aws_front.answer(s3.error(500, "InternalError"))),
    "begin-lost": ("CreateMultipartUpload", aws_front.lose_answer),
    "part-500": ("UploadPart", aws_front.answer(s3.error(500, "InternalError"))),
    "part-slow": ("UploadPart", aws_front.answer(s3.error(503, "SlowDown"))),
    "part-cut": ("UploadPart", aws_front.cut),
    "part-hang": ("UploadPart", aws_front.hang),
    "part-deaf": ("UploadPart", aws_front.deaf),
    "part-flip": ("UploadPart", s3.flip),
    "part-lost": ("UploadPart", aws_front.lose_answer),
    "end-500": ("CompleteMultipartUpload", aws_front.answer(s3.error(500, "InternalError"))),
    "end-lost": ("CompleteMultipartUpload", aws_front.lose_answer),
    "end-hang": ("CompleteMultipartUpload", aws_front.hang),
    "end-200": (
        "CompleteMultipartUpload",
        aws_front.answer(
            aws_front.response(200, b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>")
        ),
    ),
    "small-403": ("PutObject", aws_front.answer(s3.error(403, "AccessDenied"))),
    "part-404": ("UploadPart", aws_front.answer(s3.error(404, "NoSuchBucket"))),
}
"""By subpath of the job: what fails, and how. Each job is retried, since the bucket is our own."""


class S3History(History):
    """A history whose files are the objects in a bucket."""

    def __init__(self, fleet: Fleet, sink: Sink, *, url: str, moto: Moto, bucket: str) -> None:
        super().__init__(fleet, sink, url=url)
        self.moto, self.bucket = moto, bucket

    def _stored(self) -> dict[str, str]:
        assert s3.uploads(self.moto, self.bucket) == []
        found = s3.keys(self.moto, self.bucket)
        return {key.rpartition("/")[2]: s3.digest(self.moto, self.bucket, key) for key in found}


def tables(bucket: str, url: str, *, timeout: float = 1.0) -> dict[str, dict[str, Any]]:
    short = {"endpoint_url": url, "timeout": timeout}
    own = {"type": "s3", "bucket": bucket, "region": REGION, **short}
    more: Tables = {"processor.filestorage": own, "processor.s3": short, "processor": {"concurrency": 32}}
    return merged(BRIEF, more)


async def start_all(fleet: Fleet) -> Running:
    """Start a processor, a notifier and an API; returns the processor."""
    found: list[Running] = []

    async def start(role: str) -> None:
        one = await fleet.start(role, environ=CREDENTIALS)
        if role == "processor":
            found.append(one)

    async with trio.open_nursery() as nursery:
        for role in ("processor", "notifier", "api"):
            nursery.start_soon(start, role)
    return found[0]


async def post(fleet: Fleet, origin: Origin, sink: Sink, subpath: str, **more: Any) -> str:
    origin.on("/small", respond(200, SMALL))
    origin.on("/large", respond(200, LARGE))
    url = origin.url("/small" if subpath.startswith("small") else "/large")
    return await fleet.post(**job_for(url, sink.url(), limit=32, subpath=subpath, max_retries=0, **more))


@pytest.mark.row("F14")
async def test_f14_s3_fails(server: Valkey, folder: Path, sink: Sink, origin: Origin, front: Front) -> None:
    bucket = s3.new_bucket(front.moto)
    async with open_fleet(folder, server, tables(bucket, front.url)) as fleet:
        processor = await start_all(fleet)
        ids: dict[str, str] = {}
        for subpath, (operation, rule) in FAULTS.items():
            front.on(operation, rule, folder=subpath)
            ids[subpath] = await post(fleet, origin, sink, subpath)
        async with trio.open_nursery() as nursery:
            for job_id in ids.values():
                nursery.start_soon(partial(processor.event, "job.released", job_id=job_id))
        front.heal()
        await processor.stop()
        await front.settled()  # or a late CreateMultipartUpload would leave an upload that no process knows
        await fleet.start(
            "processor", environ=CREDENTIALS, tables=tables(bucket, front.url, timeout=PATIENT_S)
        )
        for callback in await sink.heard_of(*ids.values(), seconds=RELEASED_S):
            assert (callback.payload["success"], callback.payload["attempts"]) == (True, 1)
        await fleet.stop_all()
        with S3History(fleet, sink, url=server.url, moto=front.moto, bucket=bucket) as history:
            assert history.check()["succeeded"] == len(ids)
    digests = {hashlib.sha256(data).hexdigest() for data in (SMALL, LARGE)}
    assert {s3.digest(front.moto, bucket, key) for key in s3.keys(front.moto, bucket)} == digests


@pytest.mark.parametrize("operation", ["UploadPart", "CompleteMultipartUpload"])
@pytest.mark.row("F14")
async def test_f14_killed_in_mid_upload(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, front: Front, *, operation: str
) -> None:
    bucket = s3.new_bucket(front.moto)
    async with open_fleet(folder, server, tables(bucket, front.url)) as fleet:
        victim = await start_all(fleet)
        front.on(operation, aws_front.hang, skip=int(operation == "UploadPart"), times=9)
        job_id = await post(fleet, origin, sink, "large")
        await front.seen(operation, 2 if operation == "UploadPart" else 1)
        await victim.kill()
        assert s3.uploads(front.moto, bucket) == [f"large/{job_id[:3]}/{job_id}"]
        front.heal()
        await fleet.start("processor", environ=CREDENTIALS)
        [callback] = await sink.heard_of(job_id, seconds=RECOVERY_S)
        assert (callback.payload["success"], callback.payload["attempts"]) == (True, 1)
        await fleet.stop_all()
        with S3History(fleet, sink, url=server.url, moto=front.moto, bucket=bucket) as history:
            assert history.check() == {"succeeded": 1}


@pytest.mark.parametrize("subpath", ["small", "large"])
@pytest.mark.row("F14")
async def test_f14_a_stop_does_not_wait_for_s3(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, front: Front, *, subpath: str
) -> None:
    bucket = s3.new_bucket(front.moto)
    async with open_fleet(folder, server, tables(bucket, front.url, timeout=50.0)) as fleet:
        processor = await start_all(fleet)
        front.on("PutObject", aws_front.hang)
        front.on("UploadPart", aws_front.deaf)
        job_id = await post(fleet, origin, sink, subpath)
        await front.seen("PutObject" if subpath == "small" else "UploadPart")
        await processor.stop()
        assert s3.uploads(front.moto, bucket) == []
        front.heal()
        await fleet.start("processor", environ=CREDENTIALS)
        [callback] = await sink.heard_of(job_id)
        assert (callback.payload["success"], callback.payload["attempts"]) == (True, 1)
        await fleet.stop_all()
        with S3History(fleet, sink, url=server.url, moto=front.moto, bucket=bucket) as history:
            assert history.check() == {"succeeded": 1}
