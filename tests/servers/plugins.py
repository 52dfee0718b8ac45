"""Plugins opened with a host, as the service opens plugins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from downloader.notify import Host, Notifier
from downloader.storage import StorageHost

T = TypeVar("T")


def bare_host(**lent: Any) -> Host:
    """A host that lends only this, for plugins that need nothing else; `open_host` lends everything."""
    return Host(**{"client": None, "transport": None, "storage": None, **lent})


def opened_notifier(
    factory: Callable[[Mapping[str, Any], Host], AbstractAsyncContextManager[Notifier]],
    section: Mapping[str, Any],
) -> AbstractAsyncContextManager[Notifier]:
    """A notifier that needs no client and no storage."""
    return factory(section, bare_host())


def opened_storage(
    factory: Callable[[Mapping[str, Any], StorageHost], AbstractAsyncContextManager[T]],
    section: Mapping[str, Any],
) -> AbstractAsyncContextManager[T]:
    """A storage, or what gives access to buckets."""
    return factory(section, StorageHost())
