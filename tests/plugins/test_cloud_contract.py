"""The public contract suite on the `cloud` storage, on an imitation of Google's API and on Azurite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from downloader.storage import Body, Storage, StorageHost, open_storage
from downloader.testing import Fault, StorageContract, StoragePeer, TcpProxy, open_tcp_proxy
from downloader_plugins.cloud import open_cloud
from servers.azurite import ACCOUNT, KEY, Azurite
from servers.gcs import TOKEN, Gcs, open_gcs

PREFIX = "some/folder"


@dataclass
class GcsPeer(StoragePeer):
    gcs: Gcs
    proxy: TcpProxy
    hasty: Mapping[str, Any] = field(default_factory=lambda: {"timeout": 1.0})
    secrets: Sequence[str] = (TOKEN,)

    @property
    def section(self) -> Mapping[str, Any]:  # type: ignore[override]
        options = {"base_url": f"http://127.0.0.1:{self.proxy.port}", "bearer_token": TOKEN}
        return {"url": f"gs://our-bucket/{PREFIX}", "timeout": 8.0, "gs": options}

    @property
    def bad_section(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {**self.section, "gs": {"base_url": f"https://user:{TOKEN}@gcs.test", "bearer_token": TOKEN}}

    def open(self, section: Mapping[str, Any], host: StorageHost) -> AbstractAsyncContextManager[Storage]:
        return open_cloud(section, host)

    @asynccontextmanager
    async def broken(self, fault: Fault) -> AsyncIterator[None]:
        with self.proxy.fault(fault):
            yield

    async def read(self, key: str) -> bytes | None:
        stored = self.gcs.buckets["our-bucket"].get(f"{PREFIX}/{key}")
        return stored.data if stored is not None else None

    async def keys(self) -> Collection[str]:
        # One whose first response was lost has no parts and costs nothing; nobody can know its id.
        uploads = [upload for upload in list(self.gcs.uploads.values()) if upload.parts]
        unfinished = [f"an upload of {upload.key}" for upload in uploads]
        return [key.removeprefix(f"{PREFIX}/") for key in list(self.gcs.buckets["our-bucket"])] + unfinished


@pytest.mark.slow
class TestGoogle(StorageContract):
    """A prefix, and large files in two parts."""

    large_bytes = 8 * 1024 * 1024 + 1
    answer_s = 30.0
    limit_s = 110.0
    gcs: Gcs

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with open_gcs() as self.gcs:
            yield

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[StoragePeer]:
        async with open_tcp_proxy(self.gcs.port) as proxy:
            yield GcsPeer(self.gcs, proxy)


@dataclass
class AzuritePeer(StoragePeer):
    azurite: Azurite
    proxy: TcpProxy
    container: str
    hasty: Mapping[str, Any] = field(default_factory=lambda: {"timeout": 4.0})
    secrets: Sequence[str] = (KEY,)

    @property
    def section(self) -> Mapping[str, Any]:  # type: ignore[override]
        endpoint = f"http://127.0.0.1:{self.proxy.port}/{ACCOUNT}"
        options = {"account_name": ACCOUNT, "account_key": KEY, "endpoint": endpoint}
        return {"url": f"az://{self.container}/{PREFIX}", "timeout": 25.0, "az": options}

    @property
    def bad_section(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {**self.section, "az": {"account_name": ACCOUNT, "account_key": f"{KEY} "}}

    def open(self, section: Mapping[str, Any], host: StorageHost) -> AbstractAsyncContextManager[Storage]:
        return open_cloud(section, host)

    @asynccontextmanager
    async def broken(self, fault: Fault) -> AsyncIterator[None]:
        with self.proxy.fault(fault):
            yield

    async def read(self, key: str) -> bytes | None:
        return await trio.to_thread.run_sync(self.azurite.read, self.container, f"{PREFIX}/{key}")

    async def keys(self) -> Collection[str]:
        keys = await trio.to_thread.run_sync(self.azurite.keys, self.container)
        return [key.removeprefix(f"{PREFIX}/") for key in keys]


@pytest.fixture(scope="module")
def azurite() -> Iterator[Azurite]:
    with Azurite() as server:
        yield server


@pytest.mark.azure
class TestAzure(StorageContract):
    """A prefix, and large files in two blocks; Azure drops blocks of unfinished uploads by itself."""

    large_bytes = 8 * 1024 * 1024 + 1
    answer_s = 30.0
    limit_s = 110.0
    azurite: Azurite

    @pytest.fixture(autouse=True)
    def _server(self, azurite: Azurite) -> None:
        self.azurite = azurite

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[StoragePeer]:
        container = await trio.to_thread.run_sync(self.azurite.new_container)
        async with open_tcp_proxy(self.azurite.port) as proxy:
            yield AzuritePeer(self.azurite, proxy, container)


@pytest.mark.azure
async def test_azure_has_headers_and_names_without_hyphens(azurite: Azurite) -> None:
    container = azurite.new_container()
    options = {"account_name": ACCOUNT, "account_key": KEY, "endpoint": azurite.url}
    async with open_storage("cloud", {"url": f"az://{container}", "az": options}) as storage:
        for _ in range(2):
            body = Body(
                size=4,
                sha256="0" * 64,
                mime_type="image/png",
                data=b"file",
                content_disposition="attachment",
                metadata={"order-id": "17", "7up": "x"},
                key_exists="fail",
            )
            await storage.put("k", body)
    assert azurite.attributes(container, "k") == {
        "Content-Type": "image/png",
        "Content-Disposition": "attachment",
        "order_id": "17",
        "downloader_sha256": "0" * 64,
    }
