"""Opening the storage that the configuration names, and the plugin for the buckets of jobs."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from downloader.errors import PluginError
from downloader.plugins import (
    BUCKETS,
    CLOSING_S,
    OPENING_S,
    STORAGES,
    check_interface,
    find_cancel,
    load_factory,
    missing_package,
    opening_failed,
)
from downloader.storage.checked import CheckedBuckets, CheckedStorage
from downloader.storage.protocol import Buckets, Storage, StorageHost

OWN_BUCKETS = "s3"
"""The plugin for the buckets of jobs, which are S3's (`s3_bucket`)."""


@asynccontextmanager
async def open_storage(
    name: str, section: Mapping[str, Any], *, opening_s: float = OPENING_S
) -> AsyncIterator[Storage]:
    """Open the storage plugin `name` with its section, and close it at the end.

    Raises:
        PluginError: on entering: the plugin is missing, cannot be imported, refuses its section, does not
            open within `opening_s` or yields an object without the methods of a storage; the text begins with
            the configuration's table, `processor.filestorage`.
    """
    async with _opened(STORAGES, name, section, "processor.filestorage", opening_s) as storage:
        yield CheckedStorage(storage)


@asynccontextmanager
async def open_buckets(
    name: str, section: Mapping[str, Any], *, required: bool = True
) -> AsyncIterator[Buckets]:
    """Open the plugin `name` for the buckets of jobs; like `open_storage`.

    If it is not `required`, it opens without the package that it needs, and each bucket is a `StorageError`.

    Raises:
        PluginError: on entering, as `open_storage` does; the text begins with `processor.NAME`.
    """
    if required and (problem := missing_package(BUCKETS, name)):
        raise PluginError(f"processor.{name}: {problem}")
    async with _opened(BUCKETS, name, section, f"processor.{name}", OPENING_S) as buckets:
        yield CheckedBuckets(buckets)


_COROUTINES = {STORAGES: ("put", "delete", "local"), BUCKETS: ("bucket",)}


@asynccontextmanager
async def _opened(
    group: str, name: str, section: Mapping[str, Any], where: str, opening_s: float
) -> AsyncIterator[Any]:
    host = StorageHost(logger=logging.getLogger(f"downloader.{where}"))
    # Raised after the plugin is closed: its nursery would put the exception in a group.
    problem: PluginError | None = PluginError(f"{where}: did not open within {opening_s:g} s")
    # Around the plugin's whole life, as scopes and nurseries have to nest; it limits opening and closing.
    with trio.CancelScope(deadline=trio.current_time() + opening_s) as scope:
        async with AsyncExitStack() as stack:
            try:
                plugin = await stack.enter_async_context(load_factory(group, name)(section, host))
                check_interface(plugin, _COROUTINES[group], "the plugin", plain=("url",))
            except BaseException as error:  # noqa: BLE001 - a plugin can raise anything, SystemExit too
                if (cancel := find_cancel(error)) is not None:
                    raise cancel from None
                problem = PluginError(f"{where}: {opening_failed(error)}")
                problem.__cause__ = error
            else:
                problem, scope.deadline = None, math.inf
                try:
                    yield plugin
                finally:
                    scope.deadline = trio.current_time() + CLOSING_S
    if problem is not None:
        raise problem
