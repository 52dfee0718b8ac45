"""GET /files: ranges, headers, and no way out of the storage."""

from __future__ import annotations

from pathlib import Path

import pytest

from downloader.storage import StoredFile
from servers.api import Served, Serving

KEY = "pictures/NSb/NSb4FOAs9fVaQw"
DATA = bytes(range(256)) * 10


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
async def api(serving: Serving, tmp_path: Path, asked: list[str]) -> Served:
    (tmp_path / KEY).parent.mkdir(parents=True)
    (tmp_path / KEY).write_bytes(DATA)

    async def files(key: str) -> StoredFile | None:
        asked.append(key)
        path = tmp_path / key
        return StoredFile(path=path, size=path.stat().st_size) if path.is_file() else None

    return await serving(files=files)


async def test_a_file(api: Served) -> None:
    answer = await api.client.get(f"/files/{KEY}")
    assert answer.status_code == 200
    assert answer.content == DATA
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment; filename=NSb4FOAs9fVaQw"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=2550-", 2550, 2560),
        ("bytes=-5", 2555, 2560),
        ("bytes=-9999", 0, 2560),
        ("bytes=0-9999", 0, 2560),
    ],
)
async def test_a_range(api: Served, header: str, start: int, stop: int) -> None:
    answer = await api.client.get(f"/files/{KEY}", headers={"Range": header})
    assert answer.status_code == 206
    assert answer.content == DATA[start:stop]
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/2560"
    assert answer.headers["content-length"] == str(stop - start)


@pytest.mark.parametrize("header", ["bytes=0-1,5-6", "lines=1-2", "bytes=x", "bytes=5-1", "nonsense"])
async def test_ranges_that_do_not_count(api: Served, header: str) -> None:
    answer = await api.client.get(f"/files/{KEY}", headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, DATA)


@pytest.mark.parametrize("header", ["bytes=2560-", "bytes=9999-10000"])
async def test_a_range_past_the_end(api: Served, header: str) -> None:
    answer = await api.client.get(f"/files/{KEY}", headers={"Range": header})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */2560"
    assert answer.json()["code"] == "range_not_satisfiable"


async def test_head_and_entity_tags(api: Served) -> None:
    head = await api.client.head(f"/files/{KEY}")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == "2560"
    etag = head.headers["etag"]
    same = await api.client.get(f"/files/{KEY}", headers={"If-None-Match": etag})
    assert (same.status_code, same.content) == (304, b"")
    part = await api.client.get(f"/files/{KEY}", headers={"If-Range": etag, "Range": "bytes=1-2"})
    assert part.status_code == 206
    changed = await api.client.get(f"/files/{KEY}", headers={"If-Range": '"other"', "Range": "bytes=1-2"})
    assert (changed.status_code, changed.content) == (200, DATA)


@pytest.mark.slow
async def test_a_large_file_and_an_empty_one(api: Served, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(DATA * 10_000)
    (tmp_path / "empty").touch()
    assert (await api.client.get("/files/large")).content == DATA * 10_000
    empty = await api.client.get("/files/empty")
    assert (empty.status_code, empty.content) == (200, b"")
    assert (await api.client.get("/files/empty", headers={"Range": "bytes=0-"})).status_code == 416


ESCAPES = [
    *("../etc/passwd", "a/../../etc/passwd", "%2e%2e/etc/passwd", "..%2f..%2fetc/passwd", "%2fetc/passwd"),
    *("/etc/passwd", "a//b", "./a", "a/.", "a\\..\\b", "a%5c..%5cb", "a%00", "a%0a", "%e2%80%ae", "a/", ""),
]


@pytest.mark.parametrize("path", ESCAPES)
async def test_no_way_out(api: Served, asked: list[str], path: str) -> None:
    answer = await api.say(
        f"GET /files/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert asked == []


async def test_files_that_are_not_there(api: Served, serving: Serving, asked: list[str]) -> None:
    answer = await api.client.get("/files/NSb/NSb4FOAs9fVaQx")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert asked == ["NSb/NSb4FOAs9fVaQx"]
    elsewhere = await serving(files=None)
    assert (await elsewhere.client.get(f"/files/{KEY}")).status_code == 404


async def test_the_file_name_is_quoted(api: Served, tmp_path: Path) -> None:
    (tmp_path / 'a"; x=\u00fc').write_bytes(b"x")
    answer = await api.client.get("/files/a%22;%20x=%C3%BC")
    assert answer.status_code == 200
    assert answer.headers["content-disposition"].startswith("attachment; ")
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a%22%3B%20x%3D%C3%BC"
