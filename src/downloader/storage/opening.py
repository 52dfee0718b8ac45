"""Opening the storage that the configuration names, and the plugin for the buckets of jobs.

Wrappers around the plugins raise only `StorageError`, with one line that the store can keep.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from downloader.errors import KeyTaken, PluginError, StorageError, StorageRefused
from downloader.lifetimes import Plugin, opened
from downloader.plugins import (
    BUCKETS,
    OPENING_S,
    STORAGES,
    check_interface,
    find_cancel,
    load_factory,
    missing_package,
    one_line,
)
from downloader.storage.protocol import Body, Buckets, Storage, StorageHost, StoredFile


class _checked:  # noqa: N801  # cheaper than a generator: two for each job
    """Context around a call of a plugin: any exception is raised as a `StorageError`, except a cancel."""

    __slots__ = ("_call",)

    def __init__(self, call: str) -> None:
        self._call = call

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, exc: BaseException | None, _traceback: object) -> None:
        if exc is None:
            return
        if isinstance(exc, StorageError):
            kind = next((kind for kind in (KeyTaken, StorageRefused) if isinstance(exc, kind)), StorageError)
            raise kind(one_line(str(exc))) from exc
        # A plugin can raise anything, SystemExit too. The text may have a secret, so the message has only the
        # type.
        if (cancel := find_cancel(exc)) is not None:
            raise cancel from None
        raise StorageError(f"the storage failed: {self._call}() raised {type(exc).__name__}") from exc


def _wrong(call: str, result: object) -> StorageError:
    return StorageError(f"the storage failed: {call}() answered {type(result).__name__}")


def _url(get: Callable[[], object]) -> str:
    with _checked("url"):
        url = get()
    if not isinstance(url, str):
        raise _wrong("url", url)
    return url


@dataclass(frozen=True, slots=True)
class CheckedStorage:
    """`Storage`; `local` and `url` raise StorageError too."""

    plugin: Storage

    async def put(self, key: str, body: Body) -> None:
        """See `Storage.put`."""
        supported = body.key_exists in (None, "replace") or getattr(self.plugin, "knows_key_exists", False)
        if not supported:
            raise StorageRefused(f"the storage does not know key_exists {body.key_exists!r}")
        with _checked("put"):
            await self.plugin.put(key, body)

    async def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        with _checked("delete"):
            await self.plugin.delete(key)

    async def local(self, key: str) -> StoredFile | None:
        """See `Storage.local`."""
        with _checked("local"):
            file: object = await self.plugin.local(key)
        if file is not None and not isinstance(file, StoredFile):
            raise _wrong("local", file)
        return file

    def url(self, key: str) -> str:
        """See `Storage.url`."""
        return _url(lambda: self.plugin.url(key))

    @property
    def size(self) -> Callable[[str], Awaitable[int | None]] | None:
        """See `Storage`; `None` if the plugin has no such method."""
        return self._size if hasattr(self.plugin, "size") else None

    async def _size(self, key: str) -> int | None:
        with _checked("size"):
            size: object = await self.plugin.size(key)  # type: ignore[attr-defined]  # see `size`
        if size is not None and type(size) is not int:
            raise _wrong("size", size)
        return size


@dataclass(frozen=True, slots=True)
class CheckedBuckets:
    """`Buckets`; `url` raises StorageError too."""

    plugin: Buckets

    async def bucket(self, name: str, region: str) -> Storage:
        """See `Buckets.bucket`."""
        with _checked("bucket"):
            return CheckedStorage(await self.plugin.bucket(name, region))

    def url(self, name: str, region: str, key: str) -> str:
        """See `Buckets.url`."""
        return _url(lambda: self.plugin.url(name, region, key))


OWN_BUCKETS = "s3"
"""The plugin for the buckets of jobs in S3 (`s3_bucket`)."""

CLOUD_BUCKETS = "cloud"
"""The plugin for the buckets of jobs in other clouds (`storage_url`)."""


@asynccontextmanager
async def open_storage(
    name: str, section: Mapping[str, Any], *, opening_s: float = OPENING_S
) -> AsyncIterator[Storage]:
    """Open the storage plugin `name` with `section`, and close the plugin at the end; see `opened`.

    Raises:
        PluginError: on entering: the plugin is missing, cannot be imported, refuses the section, does not
            open within `opening_s` or yields an object without the methods of a storage; the text begins with
            the configuration's table, `processor.filestorage`. Later: the plugin ended by itself.
    """
    async with opened(storage_plugin(name, section, opening_s=opening_s)) as (storage,):
        yield storage


@asynccontextmanager
async def open_buckets(
    name: str, section: Mapping[str, Any], *, required: bool = True
) -> AsyncIterator[Buckets]:
    """Open the plugin `name` for the buckets of jobs; like `open_storage`.

    If not `required`, a missing package is no error here, and each bucket raises `StorageError`.

    Raises:
        PluginError: on entering, as `open_storage` does; the text begins with `processor.NAME`.
    """
    async with opened(buckets_plugin(name, section, required=required)) as (buckets,):
        yield buckets


def storage_plugin(name: str, section: Mapping[str, Any], *, opening_s: float = OPENING_S) -> Plugin:
    """The storage plugin `name`, to be passed to `opened`, which yields a `Storage`."""
    return _plugin(
        STORAGES,
        name,
        section,
        table="processor.filestorage",
        opening_s=opening_s,
        coroutines=("put", "delete", "local"),
        wrapper=CheckedStorage,
    )


def buckets_plugin(name: str, section: Mapping[str, Any], *, required: bool) -> Plugin:
    """The plugin `name` for the buckets of jobs, to be passed to `opened`, which yields `Buckets`.

    Raises:
        PluginError: see `required` of `open_buckets`.
    """
    if required and (problem := missing_package(BUCKETS, name)):
        raise PluginError(f"processor.{name}: {problem}")
    return _plugin(
        BUCKETS,
        name,
        section,
        table=f"processor.{name}",
        opening_s=OPENING_S,
        coroutines=("bucket",),
        wrapper=CheckedBuckets,
    )


def _plugin(
    group: str,
    name: str,
    section: Mapping[str, Any],
    *,
    table: str,
    opening_s: float,
    coroutines: Iterable[str],
    wrapper: Callable[[Any], Any],
) -> Plugin:
    host = StorageHost(logger=logging.getLogger(f"downloader.{table}"))

    def open_plugin() -> AbstractAsyncContextManager[Any]:
        plugin: AbstractAsyncContextManager[Any] = load_factory(group, name)(section, host)
        return plugin

    def check(plugin: Any) -> Any:
        check_interface(plugin, coroutines, "the plugin", plain=("url",))
        return wrapper(plugin)

    return Plugin(name=table, factory=open_plugin, check=check, opening_s=opening_s)
