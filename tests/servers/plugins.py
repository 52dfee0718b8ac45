"""Plugins opened as the service does it: with a host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

from downloader.notify import Host, Notifier
from downloader.storage import StorageHost
from downloader.testing import open_host

T = TypeVar("T")


@asynccontextmanager
async def opened_notifier(
    factory: Callable[[Mapping[str, Any], Host], AbstractAsyncContextManager[Notifier]],
    section: Mapping[str, Any],
) -> AsyncIterator[Notifier]:
    """A notifier that may connect to loopback."""
    async with open_host() as host, factory(section, host) as notifier:
        yield notifier


def opened_storage(
    factory: Callable[[Mapping[str, Any], StorageHost], AbstractAsyncContextManager[T]],
    section: Mapping[str, Any],
) -> AbstractAsyncContextManager[T]:
    """A storage, or what gives access to buckets."""
    return factory(section, StorageHost())
