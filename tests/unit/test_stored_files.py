"""Which stored files the service deletes."""

from __future__ import annotations

from typing import Any, cast

import pytest

from downloader.config import Settings
from downloader.ids import new_id
from downloader.model import JobSpec
from downloader.service.files import Files


class Kept:
    """A storage that notes what it is to delete."""

    def __init__(self) -> None:
        self.deleted: list[str] = []

    async def delete(self, key: str) -> None:
        self.deleted.append(key)


@pytest.mark.parametrize("bucket", ["", "of-the-caller"])
async def test_a_file_in_the_bucket_of_a_job_stays(bucket: str) -> None:
    """Also where the service's own storage is that bucket."""
    storage = Kept()
    files = Files(settings=Settings(), storage=cast("Any", storage), buckets=cast("Any", None))
    spec = JobSpec(
        id=new_id(0, 1), aggr_id="a", aggr_limit=1, url="http://x/", s3_bucket=bucket, s3_region="r"
    )
    await files.delete(spec)
    assert storage.deleted == ([] if bucket else [spec.storage_key])
