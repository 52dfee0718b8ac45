"""The `cloud` storage on an imitation of Google's API: headers, taken keys, errors, buckets of jobs."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from downloader.errors import PluginError
from downloader.model import KeyExists
from downloader.storage import (
    Body,
    BucketUrl,
    KeyTaken,
    Storage,
    StorageError,
    StorageRefused,
    open_buckets,
    open_storage,
)
from servers.gcs import TOKEN, Gcs, Stored, open_gcs

PART_BYTES = 8 * 1024 * 1024


@pytest.fixture
def gcs() -> Iterator[Gcs]:
    with open_gcs() as server:
        yield server


def body(data: bytes = b"file", *, path: Path | None = None, **more: Any) -> Body:
    digest = hashlib.sha256(data).hexdigest()
    if path is not None:
        path.write_bytes(data)
        more["path"] = path
    else:
        more["data"] = data
    return Body(**{"size": len(data), "sha256": digest, "mime_type": "image/png", **more})


def options(gcs: Gcs) -> Mapping[str, str]:
    return {"base_url": gcs.url, "bearer_token": TOKEN}


@asynccontextmanager
async def ours(gcs: Gcs, url: str = "gs://ours/files") -> AsyncIterator[Storage]:
    async with open_storage("cloud", {"url": url, "gs": options(gcs)}) as storage:
        gcs.requests.clear()
        yield storage


@asynccontextmanager
async def theirs(gcs: Gcs) -> AsyncIterator[Storage]:
    section = {"buckets": ["gs://their-*"], "gs": options(gcs)}
    async with open_buckets("cloud", section) as buckets:
        yield await buckets.bucket("gs://their-bucket", "")


@pytest.mark.slow
async def test_an_object_has_headers_and_metadata(gcs: Gcs, tmp_path: Path) -> None:
    metadata = {"Order": "17", "city": "K\u00f6ln", "bad name": "x", "control": "a\nb"}
    async with ours(gcs) as storage:
        for key, data, path in (("a", b"small", None), ("b", bytes(PART_BYTES + 1), tmp_path / "spool")):
            file = body(data, path=path, metadata=metadata, content_disposition="attachment")
            await storage.put(key, file)
            stored = gcs.buckets["ours"][f"files/{key}"]
            assert stored.data == data
            assert stored.headers == {
                "content-type": "image/png",
                "content-disposition": "attachment",
                "x-goog-meta-order": "17",
                "x-goog-meta-city": "=?utf-8?b?S8O2bG4=?=",
            }
        assert storage.url("b/c d") == f"{gcs.url}/ours/files/b/c%20d"
    assert set(gcs.buckets["ours"]) == {"files/a", "files/b"}  # not the object of the check


@pytest.mark.slow
@pytest.mark.parametrize("key_exists", ["keep", "fail"])
async def test_a_taken_key(gcs: Gcs, key_exists: KeyExists) -> None:
    """An own object with the same bytes is a success, since it may be of an earlier attempt."""
    async with ours(gcs) as storage:
        await storage.put("k", body(b"first", key_exists=key_exists))
        await storage.put("k", body(b"first", key_exists=key_exists))
        if key_exists == "keep":
            await storage.put("k", body(b"other", key_exists=key_exists))
        else:
            with pytest.raises(KeyTaken, match=r"^gs://ours: another object has the key 'k'$"):
                await storage.put("k", body(b"other", key_exists=key_exists))
        with pytest.raises(StorageRefused, match="a file over 64 MiB cannot have key_exists"):
            await storage.put("k", body(b"", size=64 * 1024 * 1024 + 1, key_exists=key_exists))
    assert gcs.buckets["ours"]["files/k"].data == b"first"


async def test_the_size_of_an_object_that_may_not_be_read(gcs: Gcs) -> None:
    async with ours(gcs) as storage:
        size = cast("Any", storage).size
        gcs.scripted["HEAD"] = [(403, False)]
        with pytest.raises(StorageRefused, match="may not be read"):
            await size("k")
        gcs.scripted["HEAD"] = [(400, False)]
        with pytest.raises(StorageError) as caught:
            await size("k")
    assert type(caught.value) is StorageError


@pytest.mark.slow
async def test_a_conflict_without_an_object_is_no_success(gcs: Gcs) -> None:
    async with ours(gcs) as storage:
        gcs.scripted["PUT"] = [(409, False)]
        with pytest.raises(StorageError):
            await storage.put("k", body(key_exists="keep"))


async def test_a_response_without_an_etag_is_no_success(gcs: Gcs) -> None:
    async with ours(gcs) as storage:
        gcs.scripted["PUT"] = [(200, False)]
        with pytest.raises(StorageError):
            await storage.put("k", body())


@pytest.mark.slow
async def test_a_request_is_repeated_twice(gcs: Gcs) -> None:
    async with ours(gcs) as storage:
        gcs.scripted["PUT"] = [(503, False), (500, False)]
        await storage.put("k", body())
        assert gcs.requests == ["PUT"] * 3
        gcs.scripted["PUT"] = [(503, False)] * 3
        with pytest.raises(StorageError, match=r"^gs://ours: status 503$") as caught:
            await storage.put("k", body())
    assert type(caught.value) is StorageError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "final", "text"),
    [
        (400, True, "status 400"),
        (401, False, "status 401: the credentials are not accepted"),
        (403, True, "status 403: access denied"),
        (404, True, "status 404: there is no such bucket"),
        (408, False, "status 408"),
        (413, True, "status 413: the file is larger than it takes"),
        (429, False, "status 429"),
    ],
)
async def test_which_errors_are_final(gcs: Gcs, *, status: int, final: bool, text: str) -> None:
    """In a bucket of a job; in the service's own bucket only that a file is too large."""
    async with ours(gcs) as own, theirs(gcs) as other:
        for bucket, name, refused in (
            (other, "their-bucket", final),
            (own, "ours", status == 413),
        ):
            gcs.scripted["PUT"] = [(status, False)] * 3
            with pytest.raises(StorageError, match=f"^gs://{name}: {text}$") as caught:
                await bucket.put("k", body())
            assert isinstance(caught.value, StorageRefused) == refused


@pytest.mark.slow
async def test_a_failed_part_aborts_the_upload(gcs: Gcs, tmp_path: Path) -> None:
    large = bytes(2 * PART_BYTES + 1)
    async with ours(gcs) as storage:
        for label in ("PUT 1", "PUT 3"):
            gcs.scripted[label] = [(400, False)]
            with pytest.raises(StorageError):
                await storage.put("k", body(large, path=tmp_path / "spool"))
        short = body(large, path=tmp_path / "spool", size=len(large) + 1)
        with pytest.raises(StorageError, match="the file to be sent is shorter than it was"):
            await storage.put("k", short)
        with pytest.raises(StorageError, match="cannot be read: No such file or directory"):
            await storage.put("k", Body(size=1, sha256="", mime_type="", path=tmp_path / "gone"))
    assert gcs.uploads == {}
    assert gcs.buckets["ours"] == {}


@pytest.mark.slow
async def test_buckets_of_jobs(gcs: Gcs) -> None:
    section = {"buckets": ["gs://their-*"], "gs": options(gcs)}
    async with open_buckets("cloud", section) as buckets:
        for name in ("gs://other", "az://their-files", "gs://their-b/../x", "gs://UPPER", "their-bucket"):
            with pytest.raises(StorageRefused):
                await buckets.bucket(name, "")
        for number in range(20):  # more than there are cached clients
            storage = await buckets.bucket(f"gs://their-{number}", "")
            await storage.put("k", body())
        assert await buckets.bucket("gs://their-19", "") == storage
        assert buckets.url("gs://their-19", "", "a/b") == storage.url("a/b") == f"{gcs.url}/their-19/a/b"
    stored = [gcs.buckets[f"their-{number}"]["k"] for number in range(20)]
    assert stored == [Stored(b"file", {"content-type": "image/png"})] * 20


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({}, "url: Field required"),
        ({"url": "s3://bucket"}, r"url: must begin with gs:// or az://; the storage s3 is for s3://"),
        ({"url": "gs://b"}, "url: has no valid name of a bucket"),
        ({"url": "ftp://bucket"}, "url: must begin with s3://, gs:// or az://"),
        ({"url": "gs://bucket/../x"}, "url: has a prefix that is no folder: .*"),
        ({"url": "az://files"}, r"az\.account_name: is required for az://"),
        (
            {"url": "gs://bucket", "gs": {"acount": "x"}},
            "gs: obstore refuses the options: .* 'acount' .*",
        ),
        ({"url": "gs://bucket", "gs": {"service_account_key": "{}"}}, "gs: obstore refuses the options: .*"),
        (
            {"url": "gs://bucket", "gs": {"base_url": "x"}},
            r"gs\.base_url: must be an absolute .*",
        ),
        ({"url": "az://files", "az": {"endpoint": "http://u:p@x"}}, r"az\.endpoint: must be an absolute .*"),
        ({"url": "gs://bucket", "timeout": 0}, "timeout: .*"),
        ({"url": "gs://bucket", "bucket": "x"}, "bucket: there is no such key.*"),
    ],
)
async def test_a_wrong_section(section: Mapping[str, Any], text: str) -> None:
    with pytest.raises(PluginError, match=f"^processor.filestorage: {text}$"):
        async with open_storage("cloud", section):
            pass


async def test_a_bucket_that_is_missing_is_told_at_the_start(gcs: Gcs) -> None:
    gcs.missing.add("ours")
    with pytest.raises(PluginError, match=r"cannot be written: gs://ours: status 404: there is no such"):
        async with ours(gcs):
            pass


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("gs://a-bucket", ("gs", "a-bucket", "")),
        ("gs://a.b_c/x/y/", ("gs", "a.b_c", "x/y/")),
        ("az://files/in", ("az", "files", "in/")),
        ("s3://bucket/", ("s3", "bucket", "")),
        *((text, None) for text in ("az://a.b", "az://a--b", "az://$root", "gs://127.0.0.1", "gs://a@b")),
        *((text, None) for text in ("gs:///x", "gs://bucket//x", "gs://bucket/a\\b", "gs://bucket?x")),
        *((text, None) for text in ("GS://bucket", "bucket", "")),
    ],
)
def test_urls_of_buckets(text: str, parsed: tuple[str, str, str] | None) -> None:
    if parsed is not None:
        assert BucketUrl.parse(text) == parsed
    else:
        with pytest.raises(ValueError, match=r"^(must|has)"):
            BucketUrl.parse(text)
