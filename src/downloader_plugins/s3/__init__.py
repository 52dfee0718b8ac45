"""Stores files in S3 or a compatible server: in the service's own bucket, and in buckets that jobs name.

Importing this module does not import boto3, which takes half a second of CPU.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from fnmatch import translate
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from downloader.errors import PluginError
from downloader.storage import (
    Buckets,
    Storage,
    StorageError,
    StorageHost,
    StorageRefused,
    background,
    is_bucket_name,
    parse_section,
)
from downloader_plugins.s3.settings import BucketsSettings, ConnectionSettings, S3StorageSettings, object_url
from downloader_plugins.s3.threads import Threads, Uploads

if TYPE_CHECKING:  # imported late, with boto3
    from downloader_plugins.s3.bucket import Bucket
    from downloader_plugins.s3.client import Clients, Maker

_CLIENTS = 16
"""How many clients are cached, one for each region that jobs have named. Measured: 80 ms of CPU and a
megabyte each."""

_REGION = re.compile(r"[a-z0-9-]{1,32}")


@asynccontextmanager
async def open_s3(section: Mapping[str, Any], host: StorageHost) -> AsyncIterator[Storage]:  # noqa: ARG001  # nothing of it is needed
    """Check that the bucket can be written, then open the storage; its files stay when it is closed.

    While it is open, a background task aborts leftover uploads of crashed instances.

    Raises:
        PluginError: the section is invalid, or the bucket cannot be written.
    """
    settings = _parse_own(section)
    threads = Threads()
    try:
        maker = await threads.run(lambda _: _maker(settings))
        clients = await threads.run(lambda _: maker.clients(settings.region))
        region = clients.quick.meta.region_name
        bucket = _as_storage(
            clients, settings.bucket, settings, region=region, threads=threads, uploads=Uploads()
        )
        await bucket.check()
    except StorageError as exc:
        raise PluginError(f"cannot be written: {exc}") from exc
    try:
        async with background(bucket.sweep):
            yield bucket
    finally:
        clients.close()


@asynccontextmanager
async def open_buckets(section: Mapping[str, Any], host: StorageHost) -> AsyncIterator[Buckets]:  # noqa: ARG001  # nothing of it is needed
    """Open access to the buckets of jobs. boto3 is imported when the first bucket is used.

    Raises:
        PluginError: the section is invalid.
    """
    buckets = _Buckets(parse_section(BucketsSettings, section))
    try:
        yield buckets
    finally:
        buckets.close()


class _Buckets:
    """`Buckets` with one session, a client for each region, and threads that all share."""

    def __init__(self, settings: BucketsSettings) -> None:
        self._settings = settings
        self._allows = re.compile("|".join(map(translate, settings.buckets)) or r"(?!)").match
        self._threads = Threads()
        self._uploads = Uploads()
        self._making = trio.Lock()
        self._maker: Maker | None = None
        self._regions: frozenset[str] = frozenset()
        self._clients: OrderedDict[str, Clients] = OrderedDict()

    async def bucket(self, name: str, region: str) -> Storage:
        """See `Buckets.bucket`."""
        if not is_bucket_name(name):
            raise StorageRefused(f"not a valid name of an S3 bucket: {name!r}")
        if not self._allows(name):
            raise StorageRefused(f"S3 bucket {name} is not allowed by processor.s3.buckets")
        if not _REGION.fullmatch(region):
            raise StorageRefused(f"not an AWS region: {region!r}")
        try:
            clients = await self._clients_of(region)
        except PluginError as exc:
            raise StorageError(f"S3 cannot be used: {exc}") from exc
        return _as_storage(
            clients, name, self._settings, region=region, threads=self._threads, uploads=self._uploads
        )

    def url(self, name: str, region: str, key: str) -> str:
        """See `Buckets.url`."""
        return object_url(name, region, key, endpoint_url=self._settings.endpoint_url)

    def close(self) -> None:
        """Close all idle connections."""
        while self._clients:
            self._clients.popitem()[1].close()

    async def _clients_of(self, region: str) -> Clients:
        found = self._clients.get(region)
        if found is not None:
            self._clients.move_to_end(region)
            return found
        async with self._making:
            maker = self._maker
            if maker is None:
                maker = await self._threads.run(lambda _: _maker(self._settings))
                self._regions = await self._threads.run(lambda _: maker.regions())
                self._maker = maker
            # On AWS the region is part of the host name, and an unknown one would look like a network
            # failure. Elsewhere it is only part of the signature.
            if not self._settings.endpoint_url and region not in self._regions:
                raise StorageRefused(f"there is no AWS region {region} with S3")
            if region not in self._clients:
                self._clients[region] = await self._threads.run(lambda _: maker.clients(region))
                if len(self._clients) > _CLIENTS:
                    # Not closed, as it may be in use; its connections are closed with the last reference.
                    self._clients.popitem(last=False)
            return self._clients[region]


def _parse_own(section: Mapping[str, Any]) -> S3StorageSettings:
    if not section.get("bucket"):
        raise PluginError("bucket: the s3 storage needs the name of a bucket")
    return parse_section(S3StorageSettings, section)


def _maker(settings: ConnectionSettings) -> Maker:
    from downloader_plugins.s3.client import Maker  # noqa: PLC0415 - see the module's docstring

    return Maker(settings)


def _as_storage(
    clients: Clients,
    name: str,
    settings: ConnectionSettings,
    *,
    region: str,
    threads: Threads,
    uploads: Uploads,
) -> Bucket:
    from downloader_plugins.s3.bucket import Bucket  # noqa: PLC0415 - see the module's docstring

    own = settings if isinstance(settings, S3StorageSettings) else None
    return Bucket(
        clients=clients,
        name=name,
        own=own is not None,
        threads=threads,
        uploads=uploads,
        locate=partial(object_url, name, region, endpoint_url=settings.endpoint_url),
        folder=f"{own.prefix}/" if own is not None and own.prefix else "",
        options=own.options if own is not None else {},
    )
