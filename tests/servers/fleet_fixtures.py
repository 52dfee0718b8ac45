"""Fixtures for tests of whole fleets, to be imported by a conftest."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from servers.origin import Origin, open_origin
from servers.sink import Sink, open_sink
from servers.valkey import Valkey

__all__ = ["folder", "origin", "server", "sink"]


@pytest.fixture
def server() -> Iterator[Valkey]:
    """A server for one test, so that commands can be counted and the server can be killed."""
    with Valkey("--appendonly", "yes", "--appendfsync", "always") as started:
        yield started


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path leaves room for a unix socket's name."""
    path = Path(tempfile.mkdtemp(prefix="dlf-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    """An origin in the test's own loop, whose requests can be waited for."""
    async with open_origin() as opened:
        yield opened


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    """A receiver of callbacks."""
    async with open_sink() as opened:
        yield opened
