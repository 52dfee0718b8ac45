"""The `http` notifier's connections: TLS, what is kept, what is dropped, what a cancel leaves behind."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trustme

from downloader.notify import Delivered, Notifier, Result, RetryLater
from servers.webhooks import OK, PAYLOAD, Receiver, opened, receiving


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as running:
        yield running


@pytest.fixture
async def notifier() -> AsyncIterator[Notifier]:
    async with opened() as running:
        yield running


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def _server(ca: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(name).configure_cert(context)
    return context


async def test_https_with_an_authority_of_our_own(ca: trustme.CA, tmp_path: Path) -> None:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with (
        receiving(_server(ca, "localhost")) as receiver,
        opened({"ca_file": str(tmp_path / "ca.pem")}) as notifier,
    ):
        for _ in range(2):
            url = receiver.url(scheme="https", host="localhost")
            assert await notifier.deliver(url, PAYLOAD) == Delivered()
        assert receiver.connections == 1
        result = await notifier.deliver(receiver.url(scheme="https"), PAYLOAD)
    assert isinstance(result, RetryLater)
    assert result.reason.startswith("TLS handshake failed: certificate verify failed: IP address mismatch")


@pytest.mark.row("H11")
async def test_bytes_after_an_answer_are_not_the_next_one(receiver: Receiver, notifier: Notifier) -> None:
    receiver.answer = OK + b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n"
    for _ in range(2):
        assert await notifier.deliver(receiver.url(), PAYLOAD) == Delivered()
    assert receiver.connections == 2


async def test_deliveries_that_have_no_time_to_begin_are_tried_again(receiver: Receiver) -> None:
    """As those of a process that was frozen: each finds its deadline passed when it begins."""
    results: list[Result] = []

    async def deliver(notifier: Notifier) -> None:
        results.append(await notifier.deliver(receiver.url(), PAYLOAD))

    async with opened({"timeout": 1e-9}) as notifier, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(deliver, notifier)
    assert [type(result) for result in results] == [RetryLater] * 3
