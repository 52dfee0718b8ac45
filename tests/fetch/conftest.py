"""A fetcher, an origin to fetch from, and a check that no socket stays open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from servers.lab import Lab, open_lab
from servers.origin import Origin, open_origin


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(tmp_path) as opened:
        yield opened


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with open_origin() as running:
        yield running


@pytest.fixture(autouse=True)
async def nothing_left_behind() -> AsyncIterator[None]:
    """No socket stays open after a test."""
    before = _sockets()
    yield
    with trio.move_on_after(20):
        while _sockets() > before:
            # The origin's side closes when it notices, which needs a turn of the loop.
            await trio.lowlevel.checkpoint()
    assert _sockets() <= before


def _sockets() -> int:
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += str(descriptor.readlink()).startswith("socket:")
        except OSError:
            continue
    return count
