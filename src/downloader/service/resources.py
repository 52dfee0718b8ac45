"""Opens resources of the roles: the store's server, the files, the host of notifiers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from downloader.config import EMBEDDED, RedisSettings, Settings
from downloader.lifetimes import opened
from downloader.net import guarded_client, open_transport, tls_context
from downloader.notify import Host
from downloader.service.files import Files
from downloader.storage import OWN_BUCKETS, Storage, buckets_plugin, storage_plugin
from downloader.store import embedded_valkey


@asynccontextmanager
async def running_redis(settings: Settings) -> AsyncIterator[RedisSettings]:
    """The settings of the store's connection. An embedded store runs as long as the context lasts.

    Raises:
        ConfigError, StoreUnavailable: see `embedded_valkey`.
    """
    if settings.redis.url != EMBEDDED:
        yield settings.redis
        return
    async with embedded_valkey(settings.data_dir, settings.redis.max_memory) as url:
        yield settings.redis.model_copy(update={"url": url})


@asynccontextmanager
async def open_files(settings: Settings) -> AsyncIterator[Files]:
    """The file storage and the buckets of jobs.

    Raises:
        PluginError: one of them cannot be opened.
    """
    plugins = (
        storage_plugin(settings.storage_name, settings.storage_section),
        buckets_plugin(OWN_BUCKETS, settings.processor.s3.section, required=settings.processor.s3.is_set),
    )
    async with opened(*plugins) as (storage, buckets):
        yield Files(settings=settings, storage=storage, buckets=buckets)


@asynccontextmanager
async def open_host(settings: Settings, storage: Storage) -> AsyncIterator[Host]:
    """The host for notifiers, with an HTTP client under `egress.callbacks`, and `storage`."""
    async with open_transport(settings.egress.policy("callbacks"), tls=tls_context()) as transport:
        yield Host(client=guarded_client(transport), transport=transport, storage=storage)
