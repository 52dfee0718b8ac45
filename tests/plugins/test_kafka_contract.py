"""The `kafka` notifier keeps the public contract of notifiers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from typing import Any

import pytest

from downloader.notify import Host, Notifier
from downloader.testing import Fault, NotifierContract, NotifierPeer, TcpProxy, open_tcp_proxy
from downloader_plugins.kafka import open_kafka
from servers.kafka import Tansu, read_topic

pytestmark = pytest.mark.slow


class Peer(NotifierPeer):
    """A broker behind a proxy, with the proxy's address as the advertised address."""

    def __init__(self, broker: Tansu, proxy: TcpProxy) -> None:
        self._broker = broker
        self._proxy = proxy
        self._names = count()
        self.section: Mapping[str, Any] = {
            "bootstrap_servers": f"127.0.0.1:{proxy.port}",
            "timeout": 5.0,
        }
        self.hasty = {"timeout": 1.5}
        self.bad_section: Mapping[str, Any] = {**self.section, "acks": 1}

    def open(self, section: Mapping[str, Any], host: Host) -> AbstractAsyncContextManager[Notifier]:
        return open_kafka(section, host)

    def destination(self) -> str:
        return f"jobs-{next(self._names)}"

    def rejected_destination(self) -> str:
        return "no topic"

    @asynccontextmanager
    async def failing(self, fault: Fault) -> AsyncIterator[str]:
        with self._proxy.fault(fault):
            yield self.destination()

    async def received(self, destination: str) -> Sequence[bytes]:
        records = await read_topic(self._broker.servers, destination)
        return [record.value for record in records]


class TestKafka(NotifierContract):
    @asynccontextmanager
    async def peer(self) -> AsyncIterator[Peer]:
        broker = Tansu()
        async with open_tcp_proxy(broker.port) as proxy:
            broker.advertised = proxy.port
            with broker:
                yield Peer(broker, proxy)
