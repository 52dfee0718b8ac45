"""Storage in S3 or a compatible server: in the service's own bucket, and in buckets named by jobs.

Importing this module does not import boto3, which takes half a second of CPU.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
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
    text_globs,
)
from downloader_plugins.aws import open_session
from downloader_plugins.objects import Threads
from downloader_plugins.s3.settings import BucketsSettings, ConnectionSettings, S3StorageSettings, object_url
from downloader_plugins.s3.uploads import Uploads

if TYPE_CHECKING:  # imported late, with boto3
    import boto3

    from downloader_plugins.s3.client import Clients

_CLIENTS = 16
"""Number of cached clients, a client for each region used by jobs. Each takes 80 ms of CPU and a megabyte
(measured)."""

_REGION = re.compile(r"[a-z0-9-]{1,32}")


@asynccontextmanager
async def open_s3(section: Mapping[str, Any], host: StorageHost) -> AsyncIterator[Storage]:  # noqa: ARG001  # required by the protocol
    """Check that the bucket can be written, then open the storage; files stay after the close.

    While it is open, a background task aborts leftover uploads of crashed instances.

    Raises:
        PluginError: the section is invalid, or the bucket cannot be written.
    """
    if not section.get("bucket"):
        raise PluginError("bucket: the s3 storage needs the name of a bucket")
    settings = parse_section(S3StorageSettings, section)
    threads = Threads()
    try:
        clients = await threads.run(
            lambda _: _open_clients(open_session(settings), settings, settings.region)
        )
        from downloader_plugins.s3.bucket import Bucket  # noqa: PLC0415 - see the module's docstring

        bucket = Bucket(
            clients=clients,
            name=settings.bucket,
            own=True,
            threads=threads,
            uploads=Uploads(),
            locate=_locate(settings, settings.bucket, clients.quick.meta.region_name),
            folder=f"{settings.prefix}/" if settings.prefix else "",
            options=settings.options,
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
async def open_buckets(section: Mapping[str, Any], host: StorageHost) -> AsyncIterator[Buckets]:  # noqa: ARG001  # required by the protocol
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
    """`Buckets` with one session, a client for each region, and common threads."""

    def __init__(self, settings: BucketsSettings) -> None:
        self._settings = settings
        self._allows = text_globs(settings.buckets)
        self._threads = Threads()
        self._uploads = Uploads()
        self._making = trio.Lock()
        self._opened: tuple[boto3.Session, frozenset[str]] | None = None
        """See `_open_session`."""
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
        from downloader_plugins.s3.bucket import Bucket  # noqa: PLC0415 - see the module's docstring

        return Bucket(
            clients=clients,
            name=name,
            own=False,
            threads=self._threads,
            uploads=self._uploads,
            locate=_locate(self._settings, name, region),
        )

    def url(self, name: str, region: str, key: str) -> str:
        """See `Buckets.url`."""
        return object_url(name, region, key, endpoint_url=self._settings.endpoint_url)

    def close(self) -> None:
        """Close all idle connections."""
        while self._clients:
            self._clients.popitem()[1].close()

    async def _clients_of(self, region: str) -> Clients:
        if (clients := self._clients.get(region)) is not None:
            self._clients.move_to_end(region)
            return clients
        async with self._making:
            if self._opened is None:
                self._opened = await self._threads.run(lambda _: _open_session())
            session, regions = self._opened
            # On AWS the region is part of the host name, and an unknown region would look like a network
            # failure. Elsewhere the region is only part of the signature.
            if not self._settings.endpoint_url and region not in regions:
                raise StorageRefused(f"there is no AWS region {region} with S3")
            if region not in self._clients:
                self._clients[region] = await self._threads.run(
                    lambda _: _open_clients(session, self._settings, region)
                )
                if len(self._clients) > _CLIENTS:
                    # Not closed, as it may be in use; the last reference closes the connections.
                    self._clients.popitem(last=False)
            return self._clients[region]


def _open_session() -> tuple[boto3.Session, frozenset[str]]:
    """A session with boto3's usual chain of credentials, and boto3's list of the regions with S3."""
    from downloader_plugins.s3.client import known_regions  # noqa: PLC0415 - see the module's docstring

    session = open_session(None)
    return session, known_regions(session)


def _open_clients(session: boto3.Session, settings: ConnectionSettings, region: str) -> Clients:
    from downloader_plugins.s3.client import open_clients  # noqa: PLC0415 - see the module's docstring

    return open_clients(session, settings, region)


def _locate(settings: ConnectionSettings, name: str, region: str) -> Callable[[str], str]:
    return partial(object_url, name, region, endpoint_url=settings.endpoint_url)
