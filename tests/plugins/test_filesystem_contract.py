"""The public contract suite on the `filesystem` storage."""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from downloader.storage import Storage, StorageHost
from downloader.testing import Fault, StorageContract, StoragePeer
from downloader_plugins.filesystem import open_filesystem


@dataclass
class FolderPeer(StoragePeer):
    root: Path
    section: Mapping[str, Any]
    bad_section: Mapping[str, Any]
    faults = (Fault.AWAY,)

    def open(self, section: Mapping[str, Any], host: StorageHost) -> AbstractAsyncContextManager[Storage]:
        return open_filesystem(section, host)

    @asynccontextmanager
    async def broken(self, fault: Fault) -> AsyncIterator[None]:  # noqa: ARG002 - there is but one
        """Its disk is not mounted: a file stands in the place of the folder."""
        aside = self.root.with_name("aside")
        self.root.rename(aside)
        self.root.touch()
        try:
            yield
        finally:
            self.root.unlink()
            aside.rename(self.root)

    async def read(self, key: str) -> bytes | None:
        path = self.root / key
        return path.read_bytes() if path.exists() else None

    async def keys(self) -> Collection[str]:
        return [str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()]


@pytest.mark.slow
class TestFilesystem(StorageContract):
    root: Path

    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.root = tmp_path / "files"

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[StoragePeer]:
        section = {"rootdir": str(self.root)}
        yield FolderPeer(self.root, section, {**section, "fsyncs": True})
