"""The `s3` storage against moto's server, and behind a front that fails."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from downloader.errors import PluginError
from downloader.model import KeyExists
from downloader.storage import Body, KeyTaken, Storage, StorageError, StorageRefused
from downloader_plugins.s3 import open_buckets, open_s3
from downloader_plugins.s3.bucket import CHECK_KEY, PART_BYTES, Bucket
from servers import aws_front, s3
from servers.aws import CREDENTIALS, REGION, Moto
from servers.aws_front import Front
from servers.plugins import opened_storage

pytestmark = pytest.mark.slow

KEY = "NSb/NSb4FOAs9fVaQw"
MIB_BYTES = 1024 * 1024
LARGE_BYTES = 2 * PART_BYTES + 1


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


def section(bucket: str, url: str, **more: Any) -> dict[str, Any]:
    return {"bucket": bucket, "region": REGION, "endpoint_url": url, "timeout": 10.0, **more}


@asynccontextmanager
async def callers(bucket: str, url: str, **more: Any) -> AsyncIterator[Storage]:
    """The same bucket as a caller's."""
    keys = section(bucket, url, **more)
    async with opened_storage(
        open_buckets, {key: keys[key] for key in keys if key not in ("bucket", "region")}
    ) as buckets:
        yield await buckets.bucket(bucket, REGION)


def small(data: bytes = b"small", **more: Any) -> Body:
    return Body(
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        mime_type="text/plain",
        data=data,
        **more,
    )


@pytest.fixture
def large(tmp_path: Path) -> Body:
    """Three parts."""
    return spooled(tmp_path, LARGE_BYTES)


def spooled(folder: Path, size: int, **more: Any) -> Body:
    data = os.urandom(size)
    path = folder / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    return Body(size=size, sha256=path.name, mime_type="image/png", path=path, **more)


METADATA = {"Album": "Łódź", "track": "07", "bad": "a\nb"}


async def test_an_object_has_its_facts(moto: Moto, bucket: str, large: Body, tmp_path: Path) -> None:
    options = {"server_side_encryption": "AES256", "storage_class": "STANDARD_IA", "prefix": "/a/b/"}
    bodies = {
        "one/" + KEY: small(metadata=METADATA),
        "two/" + KEY: spooled(tmp_path, 100_000, metadata=METADATA, content_disposition="attachment"),
        "three/" + KEY: Body(
            size=large.size, sha256=large.sha256, mime_type="x/y", path=large.path, metadata=METADATA
        ),
    }
    async with opened_storage(open_s3, section(bucket, moto.url, **options)) as storage:
        for key, body in bodies.items():
            await storage.put(key, body)
            found = moto.s3.head_object(Bucket=bucket, Key=f"a/b/{key}")
            assert (found["ContentType"], found["ContentLength"]) == (body.mime_type, body.size)
            assert found["Metadata"] == {"album": "=?utf-8?b?xYHDs2TFug==?=", "track": "07"}
            assert found.get("ContentDisposition", "") == body.content_disposition
            assert (found["ServerSideEncryption"], found["StorageClass"]) == ("AES256", "STANDARD_IA")
            assert s3.digest(moto, bucket, f"a/b/{key}") == body.sha256
            assert storage.url(key) == f"{moto.url}/{bucket}/a/b/{key}"
            assert await storage.local(key) is None
    assert s3.uploads(moto, bucket) == []


@pytest.mark.parametrize("size", [100, LARGE_BYTES])
@pytest.mark.parametrize(("key_exists", "left"), [("replace", 1), ("keep", 0), ("fail", 0)])
async def test_an_object_that_is_there_stays_if_the_job_says_so(
    moto: Moto, bucket: str, tmp_path: Path, key_exists: KeyExists, left: int, *, size: int
) -> None:
    bodies = [spooled(tmp_path, size, key_exists=key_exists, metadata=METADATA) for _ in range(2)]
    async with opened_storage(open_s3, section(bucket, moto.url)) as storage:
        await storage.put("a/b", bodies[0])
        await storage.put("a/b", bodies[0])  # another attempt of the job
        if key_exists == "fail":
            with pytest.raises(KeyTaken, match="another object"):
                await storage.put("a/b", bodies[1])
        else:
            await storage.put("a/b", bodies[1])
    assert s3.digest(moto, bucket, "a/b") == bodies[left].sha256
    assert s3.uploads(moto, bucket) == []


async def test_the_size_of_an_object_that_may_not_be_read(bucket: str, front: Front) -> None:
    async with opened_storage(open_s3, section(bucket, front.url)) as storage:
        size = cast("Any", storage).size
        front.on("HEAD", aws_front.answer(aws_front.response(403)))
        with pytest.raises(StorageRefused, match="may not be read"):
            await size("k")
        front.on("HEAD", aws_front.answer(aws_front.response(400)))
        with pytest.raises(StorageError) as caught:
            await size("k")
    assert type(caught.value) is StorageError


@pytest.mark.parametrize("key_exists", [None, "replace"])
async def test_a_refusal_without_a_condition_is_no_success(
    bucket: str, front: Front, tmp_path: Path, key_exists: KeyExists | None
) -> None:
    async with opened_storage(open_s3, section(bucket, front.url)) as storage:
        for operation in ("PutObject", "CompleteMultipartUpload"):
            front.on(operation, aws_front.answer(s3.error(412, "PreconditionFailed")))
        for body in (small(key_exists=key_exists), spooled(tmp_path, LARGE_BYTES, key_exists=key_exists)):
            with pytest.raises(StorageError, match=r"PreconditionFailed \(412\)"):
                await storage.put("a/b", body)


async def test_encryption_with_a_key_of_ones_own(moto: Moto, bucket: str) -> None:
    options = {"server_side_encryption": "aws:kms", "kms_key_id": "alias/ours"}
    async with opened_storage(open_s3, section(bucket, moto.url, **options)) as storage:
        await storage.put(KEY, small())
    found = moto.s3.head_object(Bucket=bucket, Key=KEY)
    assert (found["ServerSideEncryption"], found["SSEKMSKeyId"]) == ("aws:kms", "alias/ours")


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "AbortMultipartUpload"])
async def test_a_cancelled_start_leaves_nothing_in_the_bucket(
    moto: Moto, bucket: str, front: Front, operation: str
) -> None:
    arrived = trio.Event()

    async def hold(exchange: aws_front.Exchange) -> None:
        if operation == "CreateMultipartUpload":  # S3 creates it, and no answer arrives
            await exchange.ask_moto(await exchange.body())
        arrived.set()
        await trio.sleep_forever()

    async def start() -> None:
        async with opened_storage(open_s3, section(bucket, front.url)):
            pass

    front.on(operation, hold, times=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await arrived.wait()
        nursery.cancel_scope.cancel()
    await front.settled()
    assert s3.uploads(moto, bucket) == []


async def test_leftover_uploads_of_a_killed_start_are_aborted_by_the_next(
    moto: Moto, bucket: str, front: Front
) -> None:
    moto.s3.create_multipart_upload(Bucket=bucket, Key=f"a/{CHECK_KEY}")
    moto.s3.create_multipart_upload(Bucket=bucket, Key="a/another's")
    async with opened_storage(open_s3, section(bucket, front.url, prefix="a")):
        await front.seen("AbortMultipartUpload", 2)
        with trio.fail_after(20):
            while s3.uploads(moto, bucket) != ["a/another's"]:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("operation", "answer", "said"),
    [
        ("CreateMultipartUpload", s3.error(403, "AccessDenied"), "AccessDenied (403): access denied"),
        (
            "CreateMultipartUpload",
            s3.error(404, "NoSuchBucket"),
            "NoSuchBucket (404): there is no such bucket",
        ),
        ("CreateMultipartUpload", s3.error(301, "PermanentRedirect"), "the bucket is in another region"),
        ("CreateMultipartUpload", s3.error(503, "SlowDown"), "SlowDown (503)"),
        (
            "CreateMultipartUpload",
            aws_front.response(200, b"<html>hello</html>"),
            "the response has no UploadId",
        ),
        ("AbortMultipartUpload", s3.error(403, "AccessDenied"), "AccessDenied (403): access denied"),
    ],
)
async def test_a_bucket_that_cannot_be_written_is_one_line(
    bucket: str, front: Front, operation: str, answer: bytes, said: str
) -> None:
    front.on(operation, aws_front.answer(answer))
    with pytest.raises(PluginError) as caught:
        async with opened_storage(open_s3, section(bucket, front.url)):
            pass
    assert str(caught.value).startswith(f"cannot be written: S3 bucket {bucket}: ")
    assert said in str(caught.value)


async def test_a_bucket_out_of_reach_is_one_line(bucket: str, front: Front) -> None:
    front.on("CreateMultipartUpload", aws_front.hang)
    with pytest.raises(PluginError, match="no answer in time"):
        async with opened_storage(open_s3, section(bucket, front.url, timeout=1)):
            pass
    with pytest.raises(PluginError, match="not connected"):
        async with opened_storage(open_s3, section(bucket, "http://127.0.0.1:1")):
            pass


async def test_a_file_in_parts_takes_up_no_memory(moto: Moto, bucket: str, tmp_path: Path) -> None:
    def resident_bytes() -> int:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(96 * MIB_BYTES)
    body = Body(size=96 * MIB_BYTES, sha256="", mime_type="x/y", path=path)
    peak = 0
    async with opened_storage(open_s3, section(bucket, moto.url)) as storage:
        await storage.put(KEY, small())
        before = resident_bytes()

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, resident_bytes())
                await trio.sleep(0.005)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await storage.put(KEY, body)
            nursery.cancel_scope.cancel()
    assert peak - before < 12 * MIB_BYTES
    assert moto.s3.head_object(Bucket=bucket, Key=KEY)["ContentLength"] == body.size


async def test_uploads_have_content_md5_and_no_trailers(
    bucket: str, front: Front, large: Body, tmp_path: Path
) -> None:
    async with opened_storage(open_s3, section(bucket, front.url)) as storage:
        for body in (small(), spooled(tmp_path, 70_000), large):
            await storage.put(KEY, body)
    sent = [one for one in front.asked if one.operation in ("PutObject", "UploadPart")]
    assert len(sent) == 2 + 3
    for one in sent:
        assert "content-md5" in one.headers
        assert "x-amz-trailer" not in one.headers
        assert "aws-chunked" not in one.headers.get("content-encoding", "")


@pytest.mark.row("F14")
async def test_a_changed_bit_is_no_success(moto: Moto, bucket: str, front: Front, large: Body) -> None:
    async with opened_storage(open_s3, section(bucket, front.url)) as storage:
        front.on("PutObject", s3.flip)
        with pytest.raises(StorageError, match="BadDigest"):
            await storage.put(KEY, small())
        front.on("UploadPart", s3.flip, skip=1, times=1)
        with pytest.raises(StorageError, match="BadDigest"):
            await storage.put(KEY, large)
    assert s3.keys(moto, bucket) == s3.uploads(moto, bucket) == []


async def test_a_server_that_confirms_everything_has_stored_nothing(
    bucket: str, front: Front, large: Body
) -> None:
    yes = aws_front.answer(aws_front.response(200))
    async with opened_storage(open_s3, section(bucket, front.url)) as storage:
        for operation, body in (
            ("PutObject", small()),
            ("CreateMultipartUpload", large),
            ("UploadPart", large),
            ("CompleteMultipartUpload", large),
        ):
            front.on(operation, yes)
            with pytest.raises(StorageError):
                await storage.put(KEY, body)
            front.heal()


PARTS_MISSING = (
    b'<?xml version="1.0"?><CompleteMultipartUploadResult><Bucket>b</Bucket><Key>k</Key>'
    b"<ETag>&quot;00000000000000000000000000000000-2&quot;</ETag></CompleteMultipartUploadResult>"
)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            aws_front.response(200, b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>"),
            "InternalError",
        ),
        (aws_front.response(200, b"<?xml version='1.0'?><CompleteMultipartUploadResult><ETag>"), "S3 bucket"),
        (aws_front.response(200, PARTS_MISSING), "the object has 2 of 3 parts"),
        (s3.error(400, "InvalidPart"), "InvalidPart"),
        (s3.error(400, "EntityTooSmall"), "EntityTooSmall"),
    ],
)
async def test_an_upload_is_complete_when_s3_says_so(
    bucket: str, front: Front, large: Body, answer: bytes, said: str
) -> None:
    async with opened_storage(open_s3, section(bucket, front.url)) as storage:
        front.on("CompleteMultipartUpload", aws_front.answer(answer))
        with pytest.raises(StorageError, match=said):
            await storage.put(KEY, large)
        assert s3.keys(front.moto, bucket) == s3.uploads(front.moto, bucket) == []


async def test_still_ours_is_asked_last(moto: Moto, bucket: str, front: Front, tmp_path: Path) -> None:
    asked: list[int] = []

    def ours() -> bool:
        asked.append(front.counts["UploadPart"])
        return len(asked) < 2

    async with opened_storage(open_s3, section(bucket, front.url)) as storage:
        with pytest.raises(StorageError, match="another instance"):
            await storage.put(KEY, spooled(tmp_path, LARGE_BYTES, still_ours=ours))
        assert asked == [0, 3]
        assert front.counts["CompleteMultipartUpload"] == 0
        with pytest.raises(StorageError, match="another instance"):
            await storage.put(KEY, small(still_ours=lambda: False))
        assert front.counts["PutObject"] == 0
    assert s3.keys(moto, bucket) == s3.uploads(moto, bucket) == []


@pytest.mark.row("F14")
async def test_s3_may_stumble(moto: Moto, bucket: str, front: Front, large: Body) -> None:
    async with opened_storage(open_s3, section(bucket, front.url)) as storage:
        front.on("UploadPart", aws_front.answer(s3.error(503, "SlowDown")), skip=1, times=2)
        front.on("CompleteMultipartUpload", aws_front.answer(s3.error(500, "InternalError")), times=1)
        await storage.put(KEY, large)
        assert s3.digest(moto, bucket, KEY) == large.sha256
        front.on("PutObject", aws_front.cut, times=1)
        await storage.put(KEY, small())
        assert s3.digest(moto, bucket, KEY) == small().sha256
    assert s3.uploads(moto, bucket) == []


async def test_an_upload_whose_id_was_lost_is_aborted_when_another_begins(
    moto: Moto, bucket: str, front: Front, large: Body
) -> None:
    async with opened_storage(open_s3, section(bucket, front.url)) as storage:
        front.on("CreateMultipartUpload", aws_front.lose_answer, times=2)
        before = front.counts["CreateMultipartUpload"]
        await storage.put(KEY, large)
    assert front.counts["CreateMultipartUpload"] == before + 3
    assert s3.digest(moto, bucket, KEY) == large.sha256
    assert s3.uploads(moto, bucket) == []


LEFT = {
    "PutObject": aws_front.hang,
    "CreateMultipartUpload": aws_front.lose_answer,
    "UploadPart": aws_front.deaf,
}


@pytest.mark.parametrize("operation", ["PutObject", "CreateMultipartUpload", "UploadPart"])
async def test_a_cancel_ends_it_and_aborts(
    moto: Moto, bucket: str, front: Front, large: Body, operation: str
) -> None:
    async with opened_storage(open_s3, section(bucket, front.url)) as storage:
        left, begun = LEFT[operation], trio.Event()

        async def leave(exchange: aws_front.Exchange) -> None:
            if left is aws_front.lose_answer:
                # What S3 carries out after the cancel is beyond the plugin's reach.
                await exchange.ask_moto(await exchange.body())
                begun.set()
                exchange.reset()
            else:
                begun.set()
                await left(exchange)

        front.on(operation, leave)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.put, KEY, small() if operation == "PutObject" else large)
            await begun.wait()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - began < 9, "it waited for the answer"
        assert s3.keys(moto, bucket) == s3.uploads(moto, bucket) == []


async def test_a_cancel_breaks_off_what_is_being_sent(bucket: str, front: Front, tmp_path: Path) -> None:
    begun, cancelled, over = trio.Event(), trio.Event(), trio.Event()
    received = 0

    async def slowly(exchange: aws_front.Exchange) -> None:
        nonlocal received
        await exchange.stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        received += len(await exchange.stream.receive_some(1000))
        begun.set()
        await cancelled.wait()
        while block := await exchange.stream.receive_some(aws_front.BLOCK_BYTES):
            received += len(block)
        over.set()

    body = spooled(tmp_path, PART_BYTES)
    async with opened_storage(open_s3, section(bucket, front.url, timeout=18)) as storage:
        front.on("PutObject", slowly)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.put, KEY, body)
            await begun.wait()
            nursery.cancel_scope.cancel()
        cancelled.set()
        with trio.fail_after(20):
            await over.wait()
        assert received < body.size
    assert s3.keys(front.moto, bucket) == []


@pytest.mark.row("F14")
async def test_leftover_uploads_are_aborted_before_the_next_upload(
    moto: Moto, bucket: str, front: Front, large: Body
) -> None:
    key = "a/key"
    for left in (key, key, f"{key}x", "other"):
        moto.s3.create_multipart_upload(Bucket=bucket, Key=left)
    async with opened_storage(open_s3, section(bucket, front.url)) as storage:
        begun = len(front.asked)
        await storage.put(key, large)
        said = [one.operation for one in front.asked[begun:] if one.key == key]
        assert said[:3] == ["AbortMultipartUpload", "AbortMultipartUpload", "CreateMultipartUpload"]
        assert sorted(s3.uploads(moto, bucket)) == [f"{key}x", "other"]
        await storage.delete(f"{key}x")
        assert s3.uploads(moto, bucket) == ["other"]


async def test_files_are_stored_without_permission_to_list_uploads(
    moto: Moto, bucket: str, front: Front, large: Body
) -> None:
    front.on("ListMultipartUploads", aws_front.answer(s3.error(403, "AccessDenied")))
    async with opened_storage(open_s3, section(bucket, front.url)) as storage:
        await storage.put(KEY, large)
        assert s3.digest(moto, bucket, KEY) == large.sha256
        await storage.delete(KEY)
    assert s3.keys(moto, bucket) == []


def _listing(*uploads: tuple[str, timedelta], more: bool = False) -> bytes:
    now = datetime.now(UTC)
    rows = "".join(
        f"<Upload><Key>{key}</Key><UploadId>{number}</UploadId>"
        f"<Initiated>{(now - age).isoformat()}</Initiated></Upload>"
        for number, (key, age) in enumerate(uploads)
    )
    rest = "<NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>" if more else ""
    body = f"<ListMultipartUploadsResult><IsTruncated>{str(more).lower()}</IsTruncated>{rest}{rows}"
    return aws_front.response(200, f"<?xml version='1.0'?>{body}</ListMultipartUploadsResult>".encode())


async def test_old_leftovers_of_ours_are_aborted_at_the_start(bucket: str, front: Front) -> None:
    old, young = timedelta(days=2), timedelta(hours=20)
    front.on(
        "ListMultipartUploads",
        aws_front.answer(
            _listing(
                (f"p/{KEY}", old),
                (f"p/deep/er/{KEY}", old),
                (f"p/young/{KEY}", young),
                ("p/somebody's.zip", old),
                (f"p/wrong{KEY[3:]}", old),
            )
        ),
    )
    async with opened_storage(open_s3, section(bucket, front.url, prefix="p")):
        await front.seen("AbortMultipartUpload", 3)  # the first is that of the check
    listed = await front.seen("ListMultipartUploads")
    assert listed.query["prefix"] == "p/"
    aborted = [one.key for one in front.asked if one.operation == "AbortMultipartUpload"]
    assert aborted[1:] == [f"p/{KEY}", f"p/deep/er/{KEY}"]


async def test_all_pages_of_leftovers_are_looked_at(bucket: str, front: Front) -> None:
    front.on("ListMultipartUploads", aws_front.answer(_listing(more=True)), times=2)
    async with opened_storage(open_s3, section(bucket, front.url)):
        third = await front.seen("ListMultipartUploads", 3)
    assert (third.query["key-marker"], third.query["upload-id-marker"]) == ("k", "u")


@pytest.mark.parametrize("key", ["", "/a", "a//b", "../a", "a/./b", "a/", "a\0b", "x" * 1022])
async def test_keys_that_nothing_is_stored_under(bucket: str, front: Front, key: str) -> None:
    async with opened_storage(open_s3, section(bucket, front.url, prefix="abc")) as storage:
        with pytest.raises(StorageRefused):
            await storage.put(key, small())
        with pytest.raises(StorageRefused):
            await storage.delete(key)
    assert front.counts["PutObject"] == front.counts["DeleteObject"] == 0


async def test_a_spool_file_that_is_gone_or_shorter_is_no_success(
    moto: Moto, bucket: str, large: Body, tmp_path: Path
) -> None:
    assert large.path is not None
    async with opened_storage(open_s3, section(bucket, moto.url)) as storage:
        os.truncate(large.path, LARGE_BYTES - 1)
        with pytest.raises(StorageError, match="shorter"):
            await storage.put(KEY, large)
        large.path.unlink()
        with pytest.raises(StorageError, match="cannot be read: No such file"):
            await storage.put(KEY, large)
        gone = spooled(tmp_path, 70_000)
        assert gone.path is not None
        gone.path.unlink()
        with pytest.raises(StorageError, match="cannot be read: No such file"):
            await storage.put(KEY, gone)
    assert s3.keys(moto, bucket) == s3.uploads(moto, bucket) == []


async def test_callers_buckets_share_their_clients(moto: Moto) -> None:
    names = [s3.new_bucket(moto) for _ in range(3)]
    async with opened_storage(open_buckets, {"endpoint_url": moto.url}) as buckets:
        found: list[Bucket] = []
        for name in names:
            one = await buckets.bucket(name, REGION)
            await one.put(KEY, small(metadata=METADATA))
            assert s3.digest(moto, name, KEY) == small().sha256
            assert one.url(KEY) == buckets.url(name, REGION, KEY) == f"{moto.url}/{name}/{KEY}"
            assert isinstance(one, Bucket)
            found.append(one)
        assert len({id(one.clients) for one in found}) == 1
        assert len({id(one.threads) for one in found}) == 1


async def test_clients_are_bounded_and_those_in_use_go_on(moto: Moto, bucket: str) -> None:
    async with opened_storage(open_buckets, {"endpoint_url": moto.url}) as buckets:

        async def clients(number: int) -> object:
            opened = await buckets.bucket(bucket, f"region-{number}")
            assert isinstance(opened, Bucket)
            return opened.clients

        first = await buckets.bucket(bucket, "region-0")
        opened = [await clients(number) for number in range(20)]
        assert await clients(4) is opened[4], "16 are kept"
        assert await clients(3) is not opened[3]
        await first.put(KEY, small())


async def test_many_that_ask_at_once_have_one_client(moto: Moto, bucket: str) -> None:
    found: list[object] = []
    async with opened_storage(open_buckets, {"endpoint_url": moto.url}) as buckets:

        async def ask() -> None:
            one = await buckets.bucket(bucket, REGION)
            assert isinstance(one, Bucket)
            found.append(one.clients)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
    assert len(set(map(id, found))) == 1


REFUSALS: Mapping[str, bytes] = {
    "NoSuchBucket": s3.error(404, "NoSuchBucket"),
    "AccessDenied": s3.error(403, "AccessDenied"),
    "PermanentRedirect": aws_front.response(
        301,
        b"<Error><Code>PermanentRedirect</Code></Error>",
        x_amz_bucket_region="us-east-1",
    ),
    "InvalidAccessKeyId": s3.error(403, "InvalidAccessKeyId"),
}


@pytest.mark.parametrize("code", list(REFUSALS))
@pytest.mark.row("F14")
async def test_only_a_callers_bucket_is_given_up(bucket: str, front: Front, large: Body, code: str) -> None:
    async with (
        opened_storage(open_s3, section(bucket, front.url)) as own,
        callers(bucket, front.url) as other,
    ):
        for operation, body in (("PutObject", small()), ("CreateMultipartUpload", large)):
            front.on(operation, aws_front.answer(REFUSALS[code]))
            before = front.counts[operation]
            with pytest.raises(StorageError, match=code) as mine:
                await own.put(KEY, body)
            assert not isinstance(mine.value, StorageRefused)
            with pytest.raises(StorageRefused, match=code):
                await other.put(KEY, body)
            assert front.counts[operation] == before + 2
