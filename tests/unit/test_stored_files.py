"""Which stored files the service deletes, and where clients find them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from downloader.config import Settings
from downloader.ids import new_id
from downloader.model import JobSpec
from downloader.service.instance import Files


class Kept:
    """A storage that notes what it is to delete, and has these URLs."""

    def __init__(self, base: str = "") -> None:
        self.deleted: list[str] = []
        self.base = base

    def url(self, key: str) -> str:
        return self.base and f"{self.base}/{key}"

    async def delete(self, key: str) -> None:
        self.deleted.append(key)


@pytest.mark.parametrize(
    "where", [{}, {"s3_bucket": "theirs", "s3_region": "r"}, {"storage_url": "gs://theirs"}, {"key": "a/b"}]
)
async def test_a_file_where_the_job_wants_it_stays(where: dict[str, str]) -> None:
    """Also where the service's own storage is that bucket."""
    storage = Kept()
    files = Files(
        settings=Settings(), storage=cast("Any", storage), buckets=cast("Any", None), clouds=cast("Any", None)
    )
    spec = JobSpec(id=new_id(0, 1), aggr_id="a", aggr_limit=1, url="http://x/", **where)  # type: ignore[arg-type]
    await files.delete(spec, ())
    assert storage.deleted == ([] if where else [spec.storage_key("")])


@pytest.mark.parametrize(
    ("configured", "own", "found"),
    [
        ("https://cdn.example/f/", "https://bucket.example", "https://cdn.example/f/a%20b/"),
        ("", "https://bucket.example", "https://bucket.example/a b/"),
        ("", "", "http://127.0.0.1:8000/files/a%20b/"),
    ],
)
def test_where_a_file_is_found(configured: str, own: str, found: str) -> None:
    settings = Settings.model_validate({"processor": {"download_url": configured}})
    files = Files(
        settings=settings, storage=cast("Any", Kept(own)), buckets=cast("Any", None), clouds=cast("Any", None)
    )
    spec = JobSpec(id=new_id(0, 1), aggr_id="a", aggr_limit=1, url="http://x/", subpath="a b")
    assert files.url(spec, "") == f"{found}{spec.id[:3]}/{spec.id}"


def test_a_key_has_the_digest_of_the_file() -> None:
    files = Files(
        settings=Settings(), storage=cast("Any", Kept()), buckets=cast("Any", None), clouds=cast("Any", None)
    )
    spec = JobSpec(id=new_id(0, 1), aggr_id="a", aggr_limit=1, url="http://x/", key="a/{sha256}.png")
    assert files.url(spec, "7f" * 32) == f"http://127.0.0.1:8000/files/a/{'7f' * 32}.png"
