"""What `downloader.server` uses and overrides of hypercorn; fails with a version that lacks any part.

hypercorn is pinned below its next minor version. Its internals are no public interface, and an override of a
method that is no longer called fails silently.
"""

from __future__ import annotations

import ast
import inspect
import socket
from importlib import import_module
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import parse_socket_addr, suppress_body

import downloader.server

IMPORTED = {
    ("hypercorn.config", "Config"),
    ("hypercorn.trio.tcp_server", "TCPServer"),
    ("hypercorn.trio.worker_context", "WorkerContext"),
    ("hypercorn.utils", "parse_socket_addr"),
    ("hypercorn.utils", "suppress_body"),
}

SERVER_USED = {"app", "config", "context", "stream", "send_lock"}
SERVER_OVERRIDDEN = {"__init__", "run"}
CONTEXT_USED = {"terminated"}
CONFIG_OVERRIDDEN = {"__init__", "response_headers"}

SOURCES = [ast.parse(path.read_text()) for path in Path(downloader.server.__file__).parent.glob("*.py")]


def bare_server() -> TCPServer:
    return TCPServer(None, Config(), WorkerContext(None), {}, None)  # type: ignore[arg-type]  # it only keeps them


def test_what_is_imported() -> None:
    imported = {
        (node.module, name.name)
        for source in SOURCES
        for node in ast.walk(source)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hypercorn")
        for name in node.names
    }
    assert imported == IMPORTED
    for module, name in IMPORTED:
        assert hasattr(import_module(module), name)


def test_attributes_of_the_server_and_of_its_context() -> None:
    server = bare_server()
    accessed = {
        node.attr for source in SOURCES for node in ast.walk(source) if isinstance(node, ast.Attribute)
    }
    own = set(dir(object))
    assert accessed & (set(dir(server)) - own) == SERVER_USED
    assert accessed & (set(dir(server.context)) - own) == CONTEXT_USED
    assert isinstance(server.send_lock, trio.Lock)


@pytest.mark.parametrize(
    ("ours", "base", "overridden"),
    [("Connection", TCPServer, SERVER_OVERRIDDEN), ("ServerConfig", Config, CONFIG_OVERRIDDEN)],
)
def test_what_is_overridden(ours: str, base: type, overridden: set[str]) -> None:
    defined = {
        node.name
        for source in SOURCES
        for body in ast.walk(source)
        if isinstance(body, ast.ClassDef) and body.name == ours
        for node in body.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert defined & set(dir(base)) == overridden


def test_how_it_is_called() -> None:
    assert list(inspect.signature(TCPServer).parameters) == ["app", "config", "context", "state", "stream"]
    assert list(inspect.signature(WorkerContext).parameters) == ["max_requests"]
    assert list(inspect.signature(Config().response_headers).parameters) == ["protocol"]
    assert parse_socket_addr(socket.AF_INET, ("127.0.0.1", 80)) == ("127.0.0.1", 80)
    assert parse_socket_addr(socket.AF_INET6, ("::1", 80, 0, 0)) == ("::1", 80)
    assert parse_socket_addr(socket.AF_UNIX, ("",)) is None
    assert suppress_body("HEAD", 200)
    assert suppress_body("GET", 304)
    assert not suppress_body("GET", 200)


async def test_awaiting_a_server_runs_it() -> None:
    ran: list[Any] = []

    class Overridden(TCPServer):
        async def run(self) -> None:
            ran.append(self.app)

    await Overridden("app", Config(), WorkerContext(None), {}, None)  # type: ignore[arg-type]  # as above
    assert ran == ["app"]


async def test_a_context_tells_of_the_stop() -> None:
    context = WorkerContext(None)
    assert not context.terminated.is_set()
    await context.terminated.set()
    assert context.terminated.is_set()


def test_no_other_minor_version_is_installed() -> None:
    (bounds,) = [line for line in requires("downloader-service") or [] if line.startswith("hypercorn")]
    assert "<0.19" in bounds
    assert ">=0.18" in bounds
