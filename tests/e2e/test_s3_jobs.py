"""Jobs with files in S3, with `downloader run`: in the service's bucket, and in a caller's bucket."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest
import trio
from botocore.config import Config

from servers import aws_front, s3
from servers.aws import CREDENTIALS, REGION, Moto
from servers.aws_front import Front
from servers.fleet import Fleet, Running, job_for, open_fleet, say
from servers.origin import Exchange, Origin, respond
from servers.processes import module_process
from servers.sink import Sink
from servers.valkey import Valkey

pytestmark = [pytest.mark.slow, pytest.mark.plugin]

MIB_BYTES = 1024 * 1024
LARGE_MIB = 256
"""Ten times what the service may grow by; a file of any size goes through the same buffers."""
SHORT = {"timeout": 1.0}


def own_bucket(name: str, url: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Tables of a service that keeps files in this bucket."""
    keys = {"type": "s3", "bucket": name, "region": REGION, "endpoint_url": url, **SHORT, **more}
    return {"processor.filestorage": keys}


def their_buckets(url: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Tables of a service whose jobs bring buckets."""
    return {"processor.s3": {"endpoint_url": url, **SHORT, **more}}


async def run(fleet: Fleet) -> Running:
    return await fleet.start("run", environ=CREDENTIALS)


def key_of(job_id: str) -> str:
    return f"{job_id[:3]}/{job_id}"


async def until_gone(fleet: Fleet, job_id: str) -> None:
    """Wait until the job's record has been removed, by the last transition."""
    with trio.fail_after(30):
        while (await fleet.client.get(f"/jobs/{job_id}")).status_code != 404:  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.1)


async def ended(fleet: Fleet, job_id: str) -> dict[str, Any]:
    """The job's record after the end."""
    with trio.fail_after(30):
        while (job := await fleet.job(job_id))["state"] not in ("succeeded", "failed"):  # noqa: ASYNC110 - as above
            await trio.sleep(0.05)
    return job


async def test_12_mb_into_our_own_bucket_and_out_again(
    folder: Path, sink: Sink, origin: Origin, moto: Moto
) -> None:
    bucket = s3.new_bucket(moto)
    bodies = {"/large": os.urandom(12_000_000), "/small": os.urandom(3000), "/empty": b""}
    tables = own_bucket(bucket, moto.url, prefix="files") | {"notifier": {"deletion_interval": 600}}
    async with open_fleet(folder, None, tables) as fleet:
        service = await run(fleet)
        for path, data in bodies.items():
            origin.on(path, respond(200, data))
            job = job_for(origin.url(path), sink.url(), subpath="a b", s3_note="ignored")
            job_id = await fleet.post(**job)
            [callback] = await sink.heard_of(job_id)
            said = callback.payload
            key = f"files/a b/{key_of(job_id)}"
            assert said["success"], said
            assert (said["size"], said["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
            assert s3.digest(moto, bucket, key) == said["sha256"]
            assert moto.s3.head_object(Bucket=bucket, Key=key)["ContentType"] == said["mime_type"]
            assert said["download_url"] == f"{moto.url}/{bucket}/{key.replace(' ', '%20')}"
        await service.stop()
    assert s3.uploads(moto, bucket) == []
    assert not [
        path for path in (folder / "data").rglob("*") if path.is_file() and "valkey" not in path.parts
    ]


async def test_delivered_files_are_deleted_in_our_bucket(
    folder: Path, sink: Sink, origin: Origin, moto: Moto
) -> None:
    bucket = s3.new_bucket(moto)
    tables = own_bucket(bucket, moto.url) | {"notifier": {"deletion_interval": 0}}
    async with open_fleet(folder, None, tables) as fleet:
        service = await run(fleet)
        origin.on("/large", respond(200, os.urandom(12_000_000)))
        job_id = await fleet.post(**job_for(origin.url("/large"), sink.url()))
        await sink.heard_of(job_id)
        await until_gone(fleet, job_id)
        assert s3.keys(moto, bucket) == []
        await service.stop()


@pytest.mark.fault
@pytest.mark.timeout(240)
async def test_a_large_file_costs_no_more_memory_than_1_mib(
    folder: Path, sink: Sink, origin: Origin, tmp_path: Path
) -> None:
    size, sent = LARGE_MIB * MIB_BYTES, hashlib.sha256()
    block = os.urandom(MIB_BYTES - 8)

    async def large(exchange: Exchange) -> None:
        await exchange.send(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        # No two blocks are the same, so that no two parts can be taken for each other.
        for number in range(LARGE_MIB):
            data = number.to_bytes(8, "big") + block
            await trio.to_thread.run_sync(sent.update, data)
            await exchange.send(data)

    origin.on("/large", large)
    origin.on("/small", respond(200, block))
    async with module_process("servers.s3_disk", str(tmp_path)) as (url, pid):
        tables = own_bucket("ours", url, timeout=20)
        async with open_fleet(folder, None, tables) as fleet:
            service = await run(fleet)
            await sink.heard_of(await fleet.post(**job_for(origin.url("/small"), sink.url())))
            before = peak_mib(service.pid)
            began = time.monotonic()
            job_id = await fleet.post(**job_for(origin.url("/large"), sink.url()))
            [callback] = await sink.heard_of(job_id, seconds=180)
            took_s, after = time.monotonic() - began, peak_mib(service.pid)
            say(
                f"{LARGE_MIB} MiB in {took_s:.1f} s; peak of the service {before} MiB with 1 MiB,"
                f" {after} MiB with {LARGE_MIB}; of the S3 {peak_mib(pid)} MiB"
            )
            assert callback.payload["success"], callback.payload
            assert (callback.payload["size"], callback.payload["sha256"]) == (size, sent.hexdigest())
            assert await trio.to_thread.run_sync(read_back, url, key_of(job_id)) == sent.hexdigest()
            assert after - before < 24
            await service.stop()


def peak_mib(pid: int) -> int:
    """Most memory that a process has ever had resident."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def read_back(url: str, key: str) -> str:
    """SHA-256 of what boto3 reads."""
    config = Config(s3={"addressing_style": "path"}, response_checksum_validation="when_required")
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    found = hashlib.sha256()
    with closing(boto3.client("s3", endpoint_url=url, region_name=REGION, config=config, **keys)) as client:  # type: ignore[call-overload]  # keys by name
        for block in client.get_object(Bucket="ours", Key=key)["Body"].iter_chunks(MIB_BYTES):
            found.update(block)
    return found.hexdigest()


async def test_a_job_with_its_own_bucket_needs_no_callback(folder: Path, origin: Origin, moto: Moto) -> None:
    bucket = s3.new_bucket(moto)
    extra = json.dumps({"Album": "Łódź", "track": 7, "price": 1.50, "tags": ["no"], "bad": "a\nb", "é": "x"})
    async with open_fleet(folder, None, their_buckets(moto.url)) as fleet:
        service = await run(fleet)
        for size in (3000, 12_000_000):
            origin.on("/file", respond(200, data := os.urandom(size)))
            job = {"aggr_id": "a", "aggr_limit": 1, "url": origin.url("/file"), "extra": extra}
            job_id = await fleet.post(**job, s3_bucket=bucket, s3_region=REGION, subpath="in/here")
            record = await ended(fleet, job_id)
            assert record["state"] == "succeeded", record
            key = f"in/here/{key_of(job_id)}"
            assert s3.digest(moto, bucket, key) == hashlib.sha256(data).hexdigest()
            assert moto.s3.head_object(Bucket=bucket, Key=key)["Metadata"] == {
                "album": "=?utf-8?b?xYHDs2TFug==?=",
                "track": "7",
                "price": "1.5",
            }
        await service.stop()
    assert not (folder / "data" / "files" / "in").exists()


NO_METADATA = ["", "text", "[1]", "{", '{"a": {"b": 1}}', '{"a": "' + "x" * 5000 + '"}']


async def test_extra_that_is_no_metadata_fails_nothing(
    folder: Path, sink: Sink, origin: Origin, moto: Moto
) -> None:
    bucket = s3.new_bucket(moto)
    async with open_fleet(folder, None, their_buckets(moto.url)) as fleet:
        service = await run(fleet)
        job = job_for(origin.url("/bytes/10"), sink.url(), limit=4, s3_bucket=bucket, s3_region=REGION)
        ids = await fleet.post_all([{**job, "extra": extra} for extra in NO_METADATA])
        for job_id, extra, callback in zip(ids, NO_METADATA, await sink.heard_of(*ids), strict=True):
            assert (callback.payload["success"], callback.payload["extra"]) == (True, extra)
            assert callback.payload["download_url"] == f"{moto.url}/{bucket}/{key_of(job_id)}"
            assert moto.s3.head_object(Bucket=bucket, Key=key_of(job_id))["Metadata"] == {}
        await service.stop()


async def test_a_callers_object_is_the_callers(folder: Path, sink: Sink, origin: Origin, moto: Moto) -> None:
    bucket = s3.new_bucket(moto)
    tables = their_buckets(moto.url) | {"notifier": {"deletion_interval": 0}}
    async with open_fleet(folder, None, tables) as fleet:
        service = await run(fleet)
        job = job_for(origin.url("/bytes/10"), sink.url(), s3_bucket=bucket, s3_region=REGION)
        job_id = await fleet.post(**job)
        await sink.heard_of(job_id)
        await until_gone(fleet, job_id)
        assert s3.keys(moto, bucket) == [key_of(job_id)]
        await service.stop()


NO_SUCH = aws_front.answer(s3.error(404, "NoSuchBucket"))
DENIED = aws_front.answer(s3.error(403, "AccessDenied"))
REFUSALS = {
    "a": ("PutObject", NO_SUCH, "NoSuchBucket (404)"),
    "b": ("PutObject", DENIED, "AccessDenied (403)"),
    "c": ("CreateMultipartUpload", NO_SUCH, "NoSuchBucket (404)"),
    "d": ("CreateMultipartUpload", DENIED, "AccessDenied (403)"),
    "e": ("UploadPart", NO_SUCH, "NoSuchBucket (404)"),
    "f": ("UploadPart", DENIED, "AccessDenied (403)"),
    "g": ("CompleteMultipartUpload", DENIED, "AccessDenied (403)"),
}
"""By the job's subpath: what fails, and how."""


async def test_a_callers_bucket_that_is_missing_or_forbidden_is_final(
    folder: Path, sink: Sink, origin: Origin, front: Front
) -> None:
    bucket = s3.new_bucket(front.moto)
    origin.on("/small", respond(200, os.urandom(10)))
    origin.on("/large", respond(200, os.urandom(12_000_000)))
    for subpath, (operation, rule, _) in REFUSALS.items():
        front.on(operation, rule, folder=subpath, skip=int(operation == "UploadPart"))
    async with open_fleet(folder, None, their_buckets(front.url)) as fleet:
        service = await run(fleet)
        job = job_for(origin.url("/small"), sink.url(), limit=9, s3_bucket=bucket, s3_region=REGION)
        ids = [await fleet.post(**{**job, "s3_bucket": "missing-bucket"})]
        for subpath, (operation, _, _) in REFUSALS.items():
            url = origin.url("/small" if operation == "PutObject" else "/large")
            ids.append(await fleet.post(**{**job, "url": url, "subpath": subpath}))
        reasons = [
            "missing-bucket: NoSuchBucket (404)",
            *(f"{bucket}: {row[2]}" for row in REFUSALS.values()),
        ]
        for reason, callback in zip(reasons, await sink.heard_of(*ids), strict=True):
            said = callback.payload
            assert (said["success"], said["error_code"], said["attempts"]) == (False, "storage", 1), said
            assert said["error"].startswith(f"S3 bucket {reason}"), said
            assert said["download_url"] == ""
        assert len(origin.asked("/small")) + len(origin.asked("/large")) == len(ids)
        await service.stop()
    assert s3.keys(front.moto, bucket) == s3.uploads(front.moto, bucket) == []


@pytest.mark.row("H27")
async def test_a_bucket_that_is_not_listed_is_refused(
    folder: Path, sink: Sink, origin: Origin, moto: Moto
) -> None:
    async with open_fleet(folder, None, their_buckets(moto.url, buckets=["ours-*"])) as fleet:
        service = await run(fleet)
        job = job_for(origin.url("/bytes/10"), sink.url(), s3_bucket="theirs", s3_region=REGION)
        answer = await fleet.client.post("/download", json=job)
        assert answer.status_code == 422
        assert (answer.json()["code"], answer.json()["field"]) == ("bucket_not_allowed", "s3_bucket")
        await service.stop()


async def test_a_bucket_removed_from_the_list_is_a_final_failure(
    server: Valkey, folder: Path, sink: Sink, origin: Origin, moto: Moto
) -> None:
    """The processor checks too: the API may have another configuration, or have taken the job earlier."""
    bucket = s3.new_bucket(moto)
    async with open_fleet(folder, server, their_buckets(moto.url)) as fleet:
        await fleet.start_all("api", "notifier")
        job = job_for(origin.url("/bytes/10"), sink.url(), s3_bucket=bucket, s3_region=REGION)
        job_id = await fleet.post(**job)
        await fleet.start("processor", environ=CREDENTIALS, tables=their_buckets(moto.url, buckets=[]))
        [callback] = await sink.heard_of(job_id)
        said = callback.payload
        assert (said["success"], said["error_code"], said["attempts"]) == (False, "storage", 1), said
        assert said["error"] == f"S3 bucket {bucket} is not allowed by processor.s3.buckets"
        await fleet.stop_all()
    assert s3.keys(moto, bucket) == []


async def test_a_start_without_its_bucket_is_one_line(folder: Path, moto: Moto) -> None:
    async with open_fleet(folder, None, own_bucket("missing-bucket", moto.url)) as fleet:
        service = await fleet.start("run", environ=CREDENTIALS, ready=False)
        assert await service.wait() == 2
        [line] = service.noise
        assert line.startswith(
            "downloader: processor.filestorage: cannot be written: S3 bucket missing-bucket:"
        )
        assert line.endswith(" NoSuchBucket (404): there is no such bucket")
