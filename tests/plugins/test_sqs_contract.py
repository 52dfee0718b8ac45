"""The public contract suite on the `sqs` notifier, with moto's server."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from downloader.notify import Host, Notifier
from downloader.testing import Fault, NotifierContract, NotifierPeer, TcpProxy, open_tcp_proxy
from downloader_plugins.sqs import open_sqs
from servers.aws import REGION, Moto

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


@dataclass
class SqsPeer(NotifierPeer):
    moto: Moto
    proxy: TcpProxy
    hasty: Mapping[str, Any] = field(default_factory=lambda: {"timeout": 1.0})
    secrets: Sequence[str] = (SECRET,)
    found: dict[str, list[bytes]] = field(default_factory=dict)

    @property
    def section(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {
            "region": REGION,
            "endpoint_url": f"http://127.0.0.1:{self.proxy.port}",
            "timeout": 6.0,
            "access_key_id": "testing",
            "secret_access_key": SECRET,
        }

    @property
    def bad_section(self) -> Mapping[str, Any]:  # type: ignore[override]
        return {**self.section, "endpoint_url": f"https://user:{SECRET}@sqs.test"}

    def open(self, section: Mapping[str, Any], host: Host) -> AbstractAsyncContextManager[Notifier]:
        return open_sqs(section, host)

    def destination(self) -> str:
        name = f"contract-{secrets.token_hex(8)}"
        self.moto.sqs.create_queue(QueueName=name)
        return name

    def rejected_destination(self) -> str:
        return f"https://sqs.test/123456789012/{SECRET}"

    @asynccontextmanager
    async def failing(self, fault: Fault) -> AsyncIterator[str]:
        destination = self.destination()
        with self.proxy.fault(fault):
            yield destination

    async def received(self, destination: str) -> Sequence[bytes]:
        return await trio.to_thread.run_sync(self._received, destination)

    def _received(self, destination: str) -> list[bytes]:
        url = self.moto.sqs.get_queue_url(QueueName=destination)["QueueUrl"]
        found = self.found.setdefault(destination, [])
        while True:
            answer = self.moto.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)
            messages = answer.get("Messages", [])
            found += [message["Body"].encode() for message in messages]
            for message in messages:
                self.moto.sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            if not messages:
                return found


@pytest.mark.slow
class TestSqs(NotifierContract):
    """Standard queues; `test_sqs_notifier` has what is different for FIFO queues."""

    moto: Moto
    # boto3 reads its models whenever the plugin is opened: on a busy machine for seconds.
    answer_s = 30.0
    limit_s = 110.0

    @pytest.fixture(autouse=True)
    def _server(self, moto: Moto) -> None:
        self.moto = moto

    @asynccontextmanager
    async def peer(self) -> AsyncIterator[NotifierPeer]:
        async with open_tcp_proxy(self.moto.port) as proxy:
            yield SqsPeer(self.moto, proxy)
