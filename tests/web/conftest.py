"""What the tests that look at the web page share."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from downloader.api import Api, ApiDeps, serve
from downloader.config import ApiSettings
from downloader.net import EgressPolicy
from downloader.store.redis_store import RedisStore
from servers.browser import Browse, open_chromium
from servers.fleet_fixtures import folder, origin, server, sink

__all__ = ["folder", "origin", "server", "sink"]


@pytest.fixture(scope="module")
def browse() -> Iterator[Browse]:
    """A Chromium for all tests of a module: its start takes longer than most of them."""
    with open_chromium() as browse:
        yield browse


@pytest.fixture
async def page_url(store: RedisStore, nursery: trio.Nursery) -> AsyncIterator[str]:
    """The page of an API alone, which shows nothing but what the test has put into `store`."""
    deps = ApiDeps(
        store=store,
        settings=ApiSettings(),
        backends=frozenset({"http"}),
        egress=EgressPolicy("egress.callbacks"),
        callback_limit=16,
        keep_s=60,
        download_url=lambda spec: f"https://files.example/{spec.storage_key}",
        loopback=True,
        ready=lambda: {"api": True},
    )
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}/"

    async def run(task_status: trio.TaskStatus[None]) -> None:
        await serve(Api(deps), sockets=[sock], stop=trio.sleep_forever, grace_s=0, task_status=task_status)

    await nursery.start(run)
    yield url
    nursery.cancel_scope.cancel()
