"""Jobs that bring a bucket of Google Cloud Storage, with `downloader run`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from servers.fleet import job_for, open_fleet
from servers.gcs import TOKEN, Gcs, open_gcs
from servers.origin import Origin, respond
from servers.sink import Sink

pytestmark = [pytest.mark.slow, pytest.mark.plugin]


@pytest.fixture
def gcs() -> Iterator[Gcs]:
    with open_gcs() as server:
        yield server


async def test_a_job_brings_a_bucket(folder: Path, sink: Sink, origin: Origin, gcs: Gcs) -> None:
    """In parts, with a prefix, a key and metadata; the file stays there when the job is deleted."""
    data = os.urandom(9_000_000)
    origin.on("/picture.png", respond(200, data))
    gcs.missing.add("shop-missing")
    options = {"base_url": gcs.url, "bearer_token": TOKEN}
    tables: dict[str, dict[str, Any]] = {
        "processor.cloud": {"buckets": ["gs://shop-*"]},
        "processor.cloud.gs": options,
        "notifier": {"deletion_interval": 0},
    }
    async with open_fleet(folder, None, tables) as fleet:
        service = await fleet.start("run")
        job = job_for(
            origin.url("/picture.png"), sink.url(), storage_url="gs://shop-new/in/", extra='{"order": 17}'
        )
        [callback] = await sink.heard_of(await fleet.post(**job, key="{name}/{sha256}{ext}"))
        said = callback.payload
        key = f"in/picture/{said['sha256']}.png"
        assert (said["success"], said["download_url"]) == (True, f"{gcs.url}/shop-new/{key}")
        stored = gcs.buckets["shop-new"][key]
        assert (stored.data == data, stored.headers["x-goog-meta-order"]) == (True, "17")
        missing = job | {"storage_url": "gs://shop-missing"}
        [callback] = await sink.heard_of(await fleet.post(**missing))
        assert (callback.payload["success"], callback.payload["error_code"]) == (False, "storage")
        refused = await fleet.client.post("/download", json=job | {"storage_url": "gs://other-bucket"})
        assert (refused.status_code, refused.json()["code"]) == (422, "bucket_not_allowed")
        await service.stop()
    assert list(gcs.buckets["shop-new"]) == [key]
    assert gcs.uploads == {}
