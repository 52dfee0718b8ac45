"""A mock clock and a store in memory: nothing here does any I/O."""

from __future__ import annotations

import pytest

from servers.fake_store import FakeStore


@pytest.fixture
def store() -> FakeStore:
    """A store in memory."""
    return FakeStore()
