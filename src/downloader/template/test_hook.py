"""What the service relies on, tried on a receiver of our own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Thread
from typing import Any

from downloader.notify import Host, Notifier
from downloader.testing import Fault, NotifierContract, NotifierPeer, TcpProxy, open_tcp_proxy
from downloader_hook import open_hook

RECEIVED: defaultdict[str, list[bytes]] = defaultdict(list)
"""What the receiver was sent, by path."""


class Receiver(BaseHTTPRequestHandler):
    """Keeps the body of each request."""

    def do_POST(self) -> None:
        RECEIVED[self.path].append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write no log."""


class Peer(NotifierPeer):
    """How to open the plugin, and what the receiver has."""

    section: Mapping[str, Any] = {"token": "correct-horse"}
    bad_section: Mapping[str, Any] = {"token": 3}
    hasty: Mapping[str, Any] = {"timeout": 1}
    secrets: Sequence[str] = ["correct-horse"]
    paths = count()

    def __init__(self, proxy: TcpProxy) -> None:
        self.proxy = proxy

    def open(self, section: Mapping[str, Any], host: Host) -> AbstractAsyncContextManager[Notifier]:
        return open_hook(section, host)

    def destination(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}/{next(self.paths)}"

    def rejected_destination(self) -> str:
        return "nowhere"

    @asynccontextmanager
    async def failing(self, fault: Fault) -> AsyncIterator[str]:
        with self.proxy.fault(fault):
            yield self.destination()

    async def received(self, destination: str) -> Sequence[bytes]:
        return RECEIVED["/" + destination.rpartition("/")[2]]


class TestHook(NotifierContract):
    """Twenty tests, which the class inherits."""

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[NotifierPeer]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        Thread(target=server.serve_forever, args=[0.01]).start()
        try:
            async with open_tcp_proxy(server.server_port) as proxy:
                yield Peer(proxy)
        finally:
            server.shutdown()
            server.server_close()
