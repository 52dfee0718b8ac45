"""Fixtures for everybody: a real Valkey per test worker, and a store on it for each test."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from downloader.config import RedisSettings
from downloader.store._loop import asyncio_loop
from downloader.store._store import RedisStore, open_store
from servers.valkey import Valkey

_prefixes = itertools.count()


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """The test worker's server."""
    with Valkey("--appendonly", "yes") as server:
        yield server


@pytest.fixture
def redis_settings(valkey: Valkey) -> RedisSettings:
    """Settings of a store that nobody else uses."""
    return RedisSettings(url=valkey.url, key_prefix=f"t{next(_prefixes)}")


@pytest.fixture
async def store(redis_settings: RedisSettings) -> AsyncIterator[RedisStore]:
    """A fresh store."""
    async with asyncio_loop(), open_store(redis_settings) as opened:
        yield opened
