"""TLS over guarded connections: what is TLS's fault, what the connection's, and what is left behind."""

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trustme

from downloader.net import ConnectFailed, EgressPolicy, TimedOut, TlsFailed, tls_context
from downloader.net.dial import Dialer
from downloader.net.stream import Stream, TlsStream
from downloader.net.tls import Handshakes, Sessions
from downloader.net.url import Origin
from servers.loopback import (
    client_context,
    echo,
    listening,
    over_tls,
    server_context,
    serving,
    silence,
)

LOOPBACK = EgressPolicy.parse(["127.0.0.0/8", "::1"], setting="egress.downloads")


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


async def connect(port: int) -> Stream:
    return await Dialer(policy=LOOPBACK, within_s=5.0).connect("127.0.0.1", port)


async def secure(stream: Stream, context: ssl.SSLContext, host: str, *, within_s: float = 5) -> TlsStream:
    peer = ("", "", Origin("https", host, 443, b""), context)
    started = await Handshakes(Sessions()).start_tls(stream, peer, within_s=within_s)
    assert isinstance(started, TlsStream)
    return started


async def test_tls_keeps_the_name(ca: trustme.CA) -> None:
    seen: list[str | None] = []
    context = server_context(ca, "origin.test")
    context.sni_callback = lambda _, name, __: seen.append(name)
    async with serving(over_tls(context)) as port:
        stream = await secure(await connect(port), client_context(ca), "origin.test.")
        await stream.send(b"ping")
        assert await stream.receive(10) == b"ping"
        assert stream.tls.version() == "TLSv1.3"
        assert stream.socket.getpeername() == ("127.0.0.1", port)
        stream.close()
    assert seen == ["origin.test"]


@pytest.mark.row("H10")
def test_tls_1_2_is_the_least_whatever_the_system_allows() -> None:
    assert tls_context().minimum_version is ssl.TLSVersion.TLSv1_2


@pytest.mark.row("H10")
async def test_self_signed_is_tls(ca: trustme.CA) -> None:
    async with serving(over_tls(server_context(trustme.CA(), "origin.test"))) as port:
        with pytest.raises(TlsFailed, match=r"^certificate verify failed: "):
            await secure(await connect(port), client_context(ca), "origin.test")


@pytest.mark.row("H10")
async def test_wrong_host_is_tls(ca: trustme.CA) -> None:
    async with serving(over_tls(server_context(ca, "other.test"))) as port:
        with pytest.raises(TlsFailed, match=r"Hostname mismatch.*origin\.test"):
            await secure(await connect(port), client_context(ca), "origin.test")


@asynccontextmanager
async def alerting(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A server that tells its client by an alert why it hangs up, which Trio's does not."""

    def accept_one(listener: socket.socket) -> None:
        with listener.accept()[0] as sock:
            sock.settimeout(5)
            try:
                with context.wrap_socket(sock, server_side=True) as tls:
                    tls.recv(1)
            except OSError:
                return

    with listening() as listener:
        listener.settimeout(5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, accept_one, listener)
            yield listener.getsockname()[1]


@pytest.mark.row("H10")
async def test_old_version_is_tls(ca: trustme.CA) -> None:
    context = server_context(ca, "origin.test")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    client = client_context(ca)
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    async with alerting(context) as port:
        with pytest.raises(TlsFailed, match="protocol version"):
            await secure(await connect(port), client, "origin.test")


async def test_plain_http_answer_is_tls(ca: trustme.CA) -> None:
    async def plain(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(plain) as port:
        with pytest.raises(TlsFailed, match="wrong version number"):
            await secure(await connect(port), client_context(ca), "origin.test")


async def test_a_requested_client_certificate_is_a_tls_failure(ca: trustme.CA) -> None:
    context = server_context(ca, "origin.test")
    context.verify_mode = ssl.CERT_REQUIRED
    ca.configure_trust(context)
    async with alerting(context) as port:
        stream = await secure(await connect(port), client_context(ca), "origin.test")
        with pytest.raises(TlsFailed, match="certificate required"):
            await stream.receive(10)
        stream.close()


async def test_a_name_that_sni_cannot_carry_is_tls(ca: trustme.CA) -> None:
    async with serving(echo) as port:
        with pytest.raises(TlsFailed, match="no host name to verify"):
            await secure(await connect(port), client_context(ca), ".origin.test")


async def reset(stream: trio.SocketStream) -> None:
    await stream.receive_some(1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def hang_up(stream: trio.SocketStream) -> None:
    await stream.receive_some(65536)


@pytest.mark.parametrize("handler", [reset, hang_up])
async def test_a_broken_connection_in_the_handshake_is_not_tls(
    ca: trustme.CA, handler: Callable[[trio.SocketStream], Any]
) -> None:
    async with serving(handler) as port:
        with pytest.raises(ConnectFailed, match="during the TLS handshake"):
            await secure(await connect(port), client_context(ca), "tls.test")


async def test_silence_in_the_handshake_is_bounded(ca: trustme.CA) -> None:
    async with serving(silence) as port:
        with pytest.raises(TimedOut, match=r"no TLS handshake within 0\.05 s"):
            await secure(await connect(port), client_context(ca), "x.test", within_s=0.05)


async def test_a_cancel_in_the_handshake_closes_the_socket(ca: trustme.CA) -> None:
    async with serving(silence) as port:
        stream = await connect(port)
        sock = stream.socket
        with trio.move_on_after(0.02) as scope:
            await secure(stream, client_context(ca), "x.test", within_s=30)
        assert scope.cancelled_caught
        assert sock.fileno() == -1
