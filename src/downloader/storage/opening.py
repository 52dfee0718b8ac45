"""Opening the storage that the configuration names, and the plugin for the buckets of jobs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from downloader.errors import PluginError
from downloader.lifetimes import Plugin, opened
from downloader.plugins import (
    BUCKETS,
    OPENING_S,
    STORAGES,
    check_interface,
    load_factory,
    missing_package,
)
from downloader.storage.checked import CheckedBuckets, CheckedStorage
from downloader.storage.protocol import Buckets, Storage, StorageHost

OWN_BUCKETS = "s3"
"""The plugin for the buckets of jobs, which are S3's (`s3_bucket`)."""


@asynccontextmanager
async def open_storage(
    name: str, section: Mapping[str, Any], *, opening_s: float = OPENING_S
) -> AsyncIterator[Storage]:
    """Open the storage plugin `name` with its section, and close it at the end; see `opened`.

    Raises:
        PluginError: on entering: the plugin is missing, cannot be imported, refuses its section, does not
            open within `opening_s` or yields an object without the methods of a storage; the text begins with
            the configuration's table, `processor.filestorage`. Or it ended by itself.
    """
    async with opened(storage_plugin(name, section, opening_s=opening_s)) as (storage,):
        yield storage


@asynccontextmanager
async def open_buckets(
    name: str, section: Mapping[str, Any], *, required: bool = True
) -> AsyncIterator[Buckets]:
    """Open the plugin `name` for the buckets of jobs; like `open_storage`.

    If it is not `required`, it opens without the package that it needs, and each bucket is a `StorageError`.

    Raises:
        PluginError: on entering, as `open_storage` does; the text begins with `processor.NAME`.
    """
    async with opened(buckets_plugin(name, section, required=required)) as (buckets,):
        yield buckets


def storage_plugin(name: str, section: Mapping[str, Any], *, opening_s: float = OPENING_S) -> Plugin:
    """The storage plugin `name`, for `opened`, whose value is a `Storage`."""
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
    """The plugin `name` for the buckets of jobs, for `opened`, whose value is a `Buckets`.

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

    def open_it() -> AbstractAsyncContextManager[Any]:
        plugin: AbstractAsyncContextManager[Any] = load_factory(group, name)(section, host)
        return plugin

    def check(plugin: Any) -> Any:
        check_interface(plugin, coroutines, "the plugin", plain=("url",))
        return wrapper(plugin)

    return Plugin(name=table, factory=open_it, check=check, opening_s=opening_s)
