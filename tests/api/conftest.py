"""The API on a loopback socket, in front of a real store."""

from __future__ import annotations

import io
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx2
import pytest
import structlog
import trio

from downloader.api import Api, ApiDeps, serve
from downloader.api.events import Pace
from downloader.cli import main
from downloader.config import ApiSettings
from downloader.model import Outcome
from downloader.net import EgressPolicy
from downloader.server import Limits
from downloader.store import JobStore
from servers.api import Served, Serving, check_declared
from servers.cli import Ran, Run
from servers.jobs import end_all


@pytest.fixture
def deps(store: JobStore) -> ApiDeps:
    return ApiDeps(
        store=store,
        settings=ApiSettings(),
        backends=frozenset({"http", "sqs"}),
        egress=EgressPolicy("egress.callbacks"),
        callback_limit=16,
        keep_s=60,
        download_url=lambda spec, sha256: f"https://files.example/{spec.storage_key(sha256)}",
        loopback=True,
        ready=lambda: {"api": True, "processor": True},
    )


@pytest.fixture
async def serving(deps: ApiDeps, store: JobStore, nursery: trio.Nursery) -> AsyncIterator[Serving]:
    """Serves the API with some dependencies changed."""
    clients: list[httpx2.AsyncClient] = []

    async def start(
        *,
        limits: Limits | None = None,
        pace: Pace | None = None,
        tls: ssl.SSLContext | None = None,
        grace_s: float = 1.0,
        **changes: Any,
    ) -> Served:
        app = Api(replace(deps, **changes), pace)
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        stopping, ended = trio.Event(), trio.Event()

        async def run(task_status: trio.TaskStatus[None]) -> None:
            await serve(
                app,
                sockets=[sock],
                stop=stopping.wait,
                grace_s=grace_s,
                limits=limits,
                tls=tls,
                task_status=task_status,
            )
            ended.set()

        await nursery.start(run)
        client = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            timeout=20,
            trust_env=False,
            event_hooks={"response": [check_declared]},
        )
        clients.append(client)
        return Served(port=port, client=client, store=store, stop=stopping.set, ended=ended)

    yield start
    for client in clients:
        await client.aclose()
    nursery.cancel_scope.cancel()


@pytest.fixture
async def api(serving: Serving) -> Served:
    return await serving()


@pytest.fixture
def log(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What has been printed since the last call."""
    return lambda: "".join(capfd.readouterr())


@pytest.fixture
def run(api: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in a thread, while this one serves."""
    monkeypatch.setenv("DOWNLOADER_API", f"http://127.0.0.1:{api.port}")
    monkeypatch.delenv("DOWNLOADER_TOKEN", raising=False)

    async def call(*arguments: str, stdin: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with structlog.testing.capture_logs():
            capsys.readouterr()
            status = await trio.to_thread.run_sync(main, arguments)
        return Ran(status, *capsys.readouterr())

    return call


@pytest.fixture
async def ending(api: Served, nursery: trio.Nursery) -> AsyncIterator[Callable[[Outcome], None]]:
    """Ends all downloads with this outcome from now on."""

    async def end(outcome: Outcome) -> None:
        while True:
            await end_all(api.store, outcome)
            await trio.sleep(0.02)

    yield lambda outcome: nursery.start_soon(end, outcome)
    nursery.cancel_scope.cancel()
