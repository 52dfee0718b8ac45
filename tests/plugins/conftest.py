"""Fixtures of the tests that type pages."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def alone() -> Iterator[None]:
    """One such test at a time on this machine: the ports stand in the pages."""
    with Path(tempfile.gettempdir(), "downloader-pages.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
