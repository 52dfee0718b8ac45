"""The public contract suite on the `s3` storage, with moto's server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from downloader.storage import Storage, StorageHost
from downloader.testing import Fault, StorageContract, StoragePeer, TcpProxy, open_tcp_proxy
from downloader_plugins.s3 import open_s3
from downloader_plugins.s3.bucket import PART_BYTES
from servers.aws import REGION, Moto
from servers.s3 import new_bucket, uploads

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"
PREFIX = "some/folder"


@dataclass
class S3Peer(StoragePeer):
    moto: Moto
    proxy: TcpProxy
    bucket: str
    conditional: bool = False
    hasty: Mapping[str, Any] = field(default_factory=lambda: {"timeout": 1.0})
    secrets: Sequence[str] = (SECRET,)

    @property
    def section(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {
            "bucket": self.bucket,
            "prefix": PREFIX,
            "region": REGION,
            "endpoint_url": f"http://127.0.0.1:{self.proxy.port}",
            "timeout": 8.0,
            "access_key_id": "testing",
            "secret_access_key": SECRET,
        }

    @property
    def bad_section(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {**self.section, "endpoint_url": f"https://user:{SECRET}@s3.test"}

    def open(self, section: Mapping[str, Any], host: StorageHost) -> AbstractAsyncContextManager[Storage]:
        return open_s3(section, host)

    @asynccontextmanager
    async def broken(self, fault: Fault) -> AsyncIterator[None]:
        with self.proxy.fault(fault):
            yield

    async def read(self, key: str) -> bytes | None:
        return await trio.to_thread.run_sync(self._read, key)

    async def keys(self) -> Collection[str]:
        return await trio.to_thread.run_sync(self._keys)

    def _read(self, key: str) -> bytes | None:
        try:
            found = self.moto.s3.get_object(Bucket=self.bucket, Key=f"{PREFIX}/{key}")
        except self.moto.s3.exceptions.NoSuchKey:
            return None
        return found["Body"].read()

    def _keys(self) -> list[str]:
        objects = self.moto.s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        unfinished = [f"an upload of {key}" for key in uploads(self.moto, self.bucket)]
        return [one["Key"].removeprefix(f"{PREFIX}/") for one in objects] + unfinished


@pytest.mark.slow
class TestS3(StorageContract):
    """A prefix, and large files in two parts."""

    large_bytes = PART_BYTES + 1
    # boto3 reads its models whenever the plugin is opened: on a busy machine for seconds.
    answer_s = 30.0
    limit_s = 110.0
    moto: Moto

    @pytest.fixture(autouse=True)
    def _server(self, moto: Moto) -> None:
        self.moto = moto

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[StoragePeer]:
        bucket = new_bucket(self.moto)
        async with open_tcp_proxy(self.moto.port) as proxy:
            yield S3Peer(self.moto, proxy, bucket)
