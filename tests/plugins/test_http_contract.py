"""The public contract suite on the `http` notifier."""

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from downloader.notify import Host, Notifier
from downloader.testing import Fault, NotifierContract, NotifierPeer, TcpProxy, open_tcp_proxy
from downloader_plugins.http import open_http
from servers.webhooks import Receiver, receiving

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PASSWORD = "correct-horse"


@dataclass
class HttpPeer(NotifierPeer):
    receiver: Receiver
    proxy: TcpProxy
    section: Mapping[str, Any] = field(default_factory=lambda: {"secret": SECRET})
    bad_section: Mapping[str, Any] = field(default_factory=lambda: {"secret": "whsec_!" + PASSWORD})
    hasty: Mapping[str, Any] = field(default_factory=lambda: {"timeout": 1.0})
    secrets: Sequence[str] = (SECRET, PASSWORD)
    numbers: Any = field(default_factory=itertools.count)

    def open(self, section: Mapping[str, Any], host: Host) -> AbstractAsyncContextManager[Notifier]:
        return open_http(section, host)

    def destination(self) -> str:
        return f"http://user:{PASSWORD}@127.0.0.1:{self.proxy.port}/hook/{next(self.numbers)}"

    def rejected_destination(self) -> str:
        return f"mailto:{PASSWORD}@example.org"

    @asynccontextmanager
    async def failing(self, fault: Fault) -> AsyncIterator[str]:
        with self.proxy.fault(fault):
            yield self.destination()

    async def received(self, destination: str) -> Sequence[bytes]:
        line = f"POST {urlsplit(destination).path} HTTP/1.1"
        return [body for request, _, body in self.receiver.requests if request == line]


@pytest.mark.slow
class TestHttp(NotifierContract):
    @asynccontextmanager
    async def peer(self) -> AsyncIterator[NotifierPeer]:
        async with receiving() as receiver, open_tcp_proxy(receiver.port) as proxy:
            yield HttpPeer(receiver, proxy)
