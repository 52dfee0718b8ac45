"""What the tests that look at the web page share."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from downloader.api import Api, ApiDeps, serve
from downloader.api.events import Pace
from downloader.config import ApiSettings
from downloader.net import EgressPolicy
from downloader.store import JobStore
from servers.browser import Browse, ServePage, open_chromium
from servers.fleet_fixtures import folder, origin, server, sink

__all__ = ["folder", "origin", "server", "sink"]


@pytest.fixture(scope="session")
def browse() -> Iterator[Browse]:
    """A Chromium for all tests of a worker: its start takes longer than most of them."""
    with open_chromium() as browse:
        yield browse


@pytest.fixture
async def serve_page(store: JobStore, nursery: trio.Nursery) -> AsyncIterator[ServePage]:
    """Serves the API alone, whose page shows nothing but what the test has put into `store`."""

    async def serve_with(settings: ApiSettings) -> str:
        deps = ApiDeps(
            store=store,
            settings=settings,
            backends=frozenset({"http"}),
            egress=EgressPolicy("egress.callbacks"),
            callback_limit=16,
            keep_s=60,
            download_url=lambda spec, sha256: f"https://files.example/{spec.storage_key(sha256)}",
            loopback=True,
            ready=lambda: {"api": True},
        )
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))

        async def run(task_status: trio.TaskStatus[None]) -> None:
            api = Api(deps, Pace(sample_s=0.1, history_s=0.2))
            await serve(api, sockets=[sock], stop=trio.sleep_forever, grace_s=0, task_status=task_status)

        await nursery.start(run)
        return f"http://127.0.0.1:{sock.getsockname()[1]}/"

    yield serve_with
    nursery.cancel_scope.cancel()


@pytest.fixture
async def page_url(serve_page: ServePage) -> str:
    """The address of an open API's page."""
    return await serve_page(ApiSettings())
