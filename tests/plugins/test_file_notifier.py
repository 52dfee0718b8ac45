"""The `storage` notifier, on a folder and on S3: the payload as an object beside the files."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import trio

from downloader.errors import PluginError
from downloader.notify import Delivered, Host, Notifier, Payload, Rejected, RetryLater
from downloader.storage import Body, Storage, StorageRefused, StoredFile
from downloader.testing import Fault, NotifierContract, NotifierPeer
from downloader_plugins.file_notifier import open_file_notifier
from downloader_plugins.filesystem import open_filesystem
from servers.plugins import bare_host, opened_storage

PAYLOAD = Payload(job_id="6QEywYsd0jrKAg", aggr_id="example.org", body=b'{"success":true}')


def notifier_on(
    storage: Storage, section: Mapping[str, Any] | None = None
) -> AbstractAsyncContextManager[Notifier]:
    """On a storage of the test's choice."""
    return open_file_notifier(section or {}, bare_host(storage=storage))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "files"


@pytest.fixture
async def notifier(root: Path) -> AsyncIterator[Notifier]:
    async with (
        opened_storage(open_filesystem, {"rootdir": str(root)}) as storage,
        notifier_on(storage) as opened,
    ):
        yield opened


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_it_comes_through_its_entry_point() -> None:
    (point,) = entry_points(group="downloader.notifiers.v1", name="storage")
    assert point.load() is open_file_notifier


@pytest.mark.parametrize("destination", ["done", "done/", "a/b c/d\u00fc", "2026-11-24/x.y"])
async def test_the_payload_stands_under_the_jobs_id(notifier: Notifier, root: Path, destination: str) -> None:
    assert await notifier.deliver(destination, PAYLOAD) == Delivered()
    assert files(root) == {f"{destination.rstrip('/')}/6QEywYsd0jrKAg.json": PAYLOAD.body}


async def test_delivered_again_it_is_the_same_object(notifier: Notifier, root: Path) -> None:
    for _ in range(2):
        assert await notifier.deliver("done", PAYLOAD) == Delivered()
    assert files(root) == {"done/6QEywYsd0jrKAg.json": PAYLOAD.body}


@pytest.mark.parametrize(
    "destination",
    [
        *("", "/", "//", "/etc", "..", "../x", "a/../../x", "a/..", ".", "./a", "a/./b", "a//b", "a//"),
        *(".tmp", ".hidden/x", "a\nb", "a\0b", "a\\b", "a%2f..", "\u202ea", "a" * 513, "\u00fc" * 257),
    ],
)
async def test_an_invalid_folder_is_rejected(notifier: Notifier, root: Path, destination: str) -> None:
    answer = await notifier.deliver(destination, PAYLOAD)
    assert answer == Rejected("the callback's destination is not a folder in the file storage")
    assert files(root.parent) == {}


async def test_a_file_in_place_of_the_folder_is_retried(notifier: Notifier, root: Path) -> None:
    (root / "done").write_bytes(b"a file")
    answer = await notifier.deliver("done", PAYLOAD)
    assert isinstance(answer, RetryLater)
    assert answer.reason.startswith("not stored: ")
    (root / "done").unlink()
    assert await notifier.deliver("done", PAYLOAD) == Delivered()


class Odd:
    """A storage that records what it gets, refuses it, or hangs."""

    def __init__(self, error: Exception | None = None, *, hangs: bool = False) -> None:
        self.error = error
        self.hangs = hangs
        self.got: list[tuple[str, Body]] = []

    async def put(self, key: str, body: Body) -> None:
        self.got.append((key, body))
        if self.hangs:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error

    async def delete(self, key: str) -> None:
        raise AssertionError(key)

    async def local(self, key: str) -> StoredFile | None:
        raise AssertionError(key)

    def url(self, key: str) -> str:
        raise AssertionError(key)


async def test_the_object_says_what_it_is() -> None:
    storage = Odd()
    async with notifier_on(storage) as notifier:
        assert await notifier.deliver("done", PAYLOAD) == Delivered()
    [(key, body)] = storage.got
    assert key == "done/6QEywYsd0jrKAg.json"
    assert (body.data, body.path, body.size) == (PAYLOAD.body, None, len(PAYLOAD.body))
    assert body.mime_type == "application/json"
    assert body.sha256 == "c955e57777ec0d73639dca6748560d00aa5eb8e12f13ebb2ed9656add3908f97"
    assert body.still_ours()


async def test_a_missing_own_bucket_is_tried_again() -> None:
    async with notifier_on(Odd(StorageRefused("bucket files does not exist"))) as notifier:
        answer = await notifier.deliver("done", PAYLOAD)
    assert answer == RetryLater("not stored: bucket files does not exist")


async def test_a_storage_that_hangs_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async with notifier_on(Odd(hangs=True)) as notifier:
        assert await notifier.deliver("done", PAYLOAD) == RetryLater("not stored within 30 s")
    assert trio.current_time() == 30


async def test_a_section_has_no_keys() -> None:
    with pytest.raises(PluginError, match=r"^bucket: there is no such key$"):
        async with notifier_on(Odd(), {"bucket": "x"}):
            pass


@dataclass
class FolderPeer(NotifierPeer):
    root: Path
    storage: Storage
    section: Mapping[str, Any]
    bad_section: Mapping[str, Any]
    faults = (Fault.AWAY,)

    def open(self, section: Mapping[str, Any], host: Host) -> AbstractAsyncContextManager[Notifier]:
        return open_file_notifier(section, replace(host, storage=self.storage))

    def destination(self) -> str:
        return f"callbacks/{secrets.token_hex(4)}"

    def rejected_destination(self) -> str:
        return "../elsewhere"

    @asynccontextmanager
    async def failing(self, fault: Fault) -> AsyncIterator[str]:  # noqa: ARG002 - the suite's signature
        """Its disk is not mounted: a file stands in the place of the folder."""
        aside = self.root.with_name("aside")
        self.root.rename(aside)
        self.root.touch()
        try:
            yield self.destination()
        finally:
            self.root.unlink()
            aside.rename(self.root)

    async def received(self, destination: str) -> Sequence[bytes]:
        return [path.read_bytes() for path in (self.root / destination).glob("*.json")]


@pytest.mark.slow
class TestStorageNotifier(NotifierContract):
    root: Path

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.root = tmp_path / "files"

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[NotifierPeer]:
        async with opened_storage(open_filesystem, {"rootdir": str(self.root)}) as storage:
            yield FolderPeer(self.root, storage, {}, {"bucket": "x"})
