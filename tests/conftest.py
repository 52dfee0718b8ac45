"""Common fixtures: a real Valkey per test worker, and a store on the Valkey for each test."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from downloader.config import RedisSettings
from downloader.store import JobStore, Library, asyncio_loop, load_library, open_store
from servers.aws import Moto
from servers.aws_front import Front
from servers.raw_store import RawStore
from servers.s3 import new_bucket, open_front
from servers.store_clock import StoreClock, clocked_library
from servers.valkey import Valkey

pytest_plugins = ["rows"]

# A busy machine may take long over any example; the test's own timeout bounds them all.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

_prefixes = itertools.count()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, which has all that tests may ask of a machine, a skipped test is one that was forgotten."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter.ensure_newline()
        reporter.write_line("CI: a skipped test counts as a failed one", red=True)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m fault` and `-m 'server and ...'` import only files with such a test: all would take seconds."""
    chosen = True
    if collection_path.match("test_*.py"):
        if config.option.markexpr == "fault":
            chosen = "mark.fault" in collection_path.read_text("utf-8")
        elif config.option.markexpr.startswith("server and"):
            chosen = _depends_on_server(collection_path)
    return None if chosen else True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first: at the end a long test would keep one core busy and the others idle."""
    items.sort(key=_limit_s, reverse=True)
    for item in items:
        if _depends_on_server(item.path) and item.get_closest_marker("fault") is None:
            item.add_marker("server")


SERVER_FILES = {"test_cluster.py", "test_fleet.py", "test_run.py", "test_sentinel.py", "test_shared_pace.py"}
"""The tests of whole services in which the kind of the store's server may matter."""


def _depends_on_server(path: Path) -> bool:
    folder, name = path.parent.name, path.name
    return folder == "store" or (folder == "e2e" and name in SERVER_FILES) or name == "test_store.py"


def _limit_s(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker is not None and marker.args else 0.0


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A test that runs a command in this process sets up logging; the next test has the defaults again."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def other_device(tmp_path: Path) -> Iterator[Path]:
    """A folder in another file system than `tmp_path`, to which no link can be made."""
    for place in (Path("/dev/shm"), Path("/var/tmp")):
        if place.is_dir() and place.stat().st_dev != tmp_path.stat().st_dev and os.access(place, os.W_OK):
            with tempfile.TemporaryDirectory(dir=place) as folder:
                yield Path(folder)
            return
    pytest.skip("needs a second file system")


@pytest.fixture(scope="session")
def aws() -> Iterator[Moto]:
    """The test worker's AWS."""
    with Moto() as server:
        yield server


@pytest.fixture
def moto(aws: Moto) -> Iterator[Moto]:
    """The test worker's AWS, empty; a test may break the server."""
    aws.reset()
    yield aws
    aws.revive()


@pytest.fixture
async def front(moto: Moto) -> AsyncIterator[Front]:
    """A proxy in front of the test worker's AWS that a test controls."""
    async with open_front(moto) as running:
        yield running


@pytest.fixture
def bucket(moto: Moto) -> str:
    """An empty bucket there."""
    return new_bucket(moto)


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """The test worker's server."""
    with Valkey("--appendonly", "yes") as server:
        yield server


@pytest.fixture
def redis_settings(valkey: Valkey) -> RedisSettings:
    """Settings of a store that no other test uses."""
    return RedisSettings(url=valkey.url, key_prefix=f"t{next(_prefixes)}")


@pytest.fixture
def raw(redis_settings: RedisSettings) -> Iterator[RawStore]:
    """The server of that store, past the store."""
    opened = RawStore(redis_settings)
    yield opened
    opened.close()


@pytest.fixture
def clock(raw: RawStore) -> StoreClock:
    """The server's clock, which only the test moves."""
    return StoreClock(raw)


@pytest.fixture
def library(request: pytest.FixtureRequest) -> Library:
    """The transitions of the store, which read `clock` in a test that uses that fixture."""
    if "clock" not in request.fixturenames:
        return load_library()
    request.getfixturevalue("clock")
    return clocked_library()


@pytest.fixture
async def store(redis_settings: RedisSettings, library: Library) -> AsyncIterator[JobStore]:
    """A fresh store."""
    async with asyncio_loop(), open_store(redis_settings, library=library) as opened:
        yield opened
