"""TLS sessions that are resumed, and those that must not be; how a burst of handshakes shares the loop."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from downloader.net import (
    ConnectFailed,
    EgressPolicy,
    NetError,
    Route,
    TlsFailed,
    Transport,
    Url,
    open_transport,
    tls_context,
)
from downloader.net.dial import Dialer
from downloader.net.tls import MAX_SESSIONS, Handshakes, Sessions
from downloader.net.url import Origin as UrlOrigin
from servers.certs import authority, server_context, write_authority
from servers.loopback import client_context, copy, serving
from servers.origin import Exchange, Origin, open_origin
from servers.proxies import open_proxy

LOOPBACK = EgressPolicy.parse(["127.0.0.1", "localhost"], setting="egress.downloads")
HEADERS = [("Connection", "close")]


@pytest.fixture
def trusting(tmp_path: Path) -> ssl.SSLContext:
    return tls_context(write_authority(tmp_path))


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def origin(request: pytest.FixtureRequest) -> AsyncIterator[Origin]:
    context = server_context()
    context.maximum_version = request.param
    async with open_origin(context) as running:
        yield running


@asynccontextmanager
async def opened(tls: ssl.SSLContext) -> AsyncIterator[Transport]:
    async with open_transport(LOOPBACK, tls=tls) as transport:
        yield transport


async def resumed(transport: Transport, origin: Origin, **route: Any) -> bool:
    """Make one request, on a connection of its own; whether the server has resumed a session."""
    reused: list[bool] = []

    async def answer(exchange: Exchange) -> None:
        stream: Any = exchange.stream
        reused.append(stream.session_reused)
        await exchange.respond(200, b"x" * 100, HEADERS)

    host = route.pop("host", "127.0.0.1")
    origin.on("/x", answer)
    response = await transport.send("GET", Route(url=Url.parse(origin.url("/x", host=host)), **route), [])
    assert len(b"".join([piece async for piece in response.body])) == 100
    (result,) = reused
    return result


async def test_a_later_connection_resumes_the_session(origin: Origin, trusting: ssl.SSLContext) -> None:
    async with opened(trusting) as transport:
        assert [await resumed(transport, origin, aggregation=a) for a in "aaba"] == [False, True, True, True]
    async with opened(trusting) as transport:  # a transport keeps its own
        assert not await resumed(transport, origin)


async def test_a_session_is_used_once(trusting: ssl.SSLContext) -> None:
    async with open_origin(server_context()) as origin, opened(trusting) as transport:
        assert not await resumed(transport, origin)
        peer = next(iter(transport.sessions.by_peer))
        first = transport.sessions.take(peer)
        assert first is not None
        assert transport.sessions.take(peer) is None
        transport.sessions.keep(peer, first)
        assert await resumed(transport, origin)
        assert transport.sessions.take(peer) != first


async def test_another_context_or_host_gets_no_session(trusting: ssl.SSLContext) -> None:
    async with open_origin(server_context()) as origin, opened(trusting) as transport:
        assert not await resumed(transport, origin)
        other = client_context(authority())
        assert not await resumed(transport, origin, tls=other)
        assert not await resumed(transport, origin, host="localhost")
        assert await resumed(transport, origin)
        assert await resumed(transport, origin, tls=other)


async def test_a_proxy_s_sessions_are_its_aggregation_s(trusting: ssl.SSLContext) -> None:
    async with (
        open_origin(server_context()) as origin,
        open_proxy("http") as one,
        open_proxy("https", server_context()) as other,
        opened(trusting) as transport,
    ):
        assert not await resumed(transport, origin)
        via = [Url.parse(proxy.url(), "proxy") for proxy in (one, other)]
        for aggregation in "ab":
            for proxy in via:
                assert not await resumed(transport, origin, aggregation=aggregation, proxy=proxy)
                assert await resumed(transport, origin, aggregation=aggregation, proxy=proxy)
        assert await resumed(transport, origin)


async def test_a_server_that_refuses_a_session_shakes_hands(trusting: ssl.SSLContext) -> None:
    async with open_origin(server_context()) as origin, opened(trusting) as transport:
        assert not await resumed(transport, origin)
        (peer,) = transport.sessions.by_peer
        async with open_origin(server_context()) as stranger:  # has not issued the ticket
            foreign = Route(url=Url.parse(stranger.url("/x")))
            session = transport.sessions.take(peer)
            assert session is not None
            transport.sessions.keep(("", "", foreign.url.origin, trusting), session)
            assert not await resumed(transport, stranger)
            assert await resumed(transport, stranger)


_ALERT = b"\x15\x03\x03\x00\x02\x02\x28"
"""A fatal alert: handshake failure."""


def _has_ticket(hello: bytes) -> bool:
    """Whether the last extension is `pre_shared_key` (RFC 8446, 4.2.11)."""
    return any(
        int.from_bytes(hello[match.end() : match.end() + 2]) == len(hello) - match.end() - 2
        for match in re.finditer(rb"\x00\x29", hello)
    )


async def test_a_server_that_fails_at_a_session_is_asked_again_without(trusting: ssl.SSLContext) -> None:
    hellos: list[bool] = []
    context = server_context()

    async def intolerant(stream: trio.SocketStream) -> None:
        hello = bytes(await stream.receive_some(65536))
        hellos.append(_has_ticket(hello))
        if hellos[-1]:
            await stream.send_all(_ALERT)
            return
        inner, outer = trio.testing.memory_stream_pair()
        await inner.send_all(hello)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump, stream, inner.send_stream)
            nursery.start_soon(_pump, inner, stream)
            tls = trio.SSLStream(outer, context, server_side=True, https_compatible=True)
            await tls.receive_some(65536)
            await tls.send_all(b"HTTP/1.1 204 OK\r\nConnection: close\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    async with serving(intolerant) as port, opened(trusting) as transport:
        for _ in range(2):
            for peer, sessions in list(transport.sessions.by_peer.items()):
                transport.sessions.keep(peer, sessions[0])  # one more, which must not be tried too
            response = await transport.send("GET", Route(url=Url.parse(f"https://127.0.0.1:{port}/")), [])
            assert response.status == 204
            await response.body.aclose()
    assert hellos == [False, True, False]


async def _pump(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
    async for data in source:
        await sink.send_all(data)


@dataclass
class Front:
    """A port in front of a TLS server that closes some connections after the client's first message."""

    port: int = 0
    hellos: list[bool] = field(default_factory=list)
    """Of each connection, whether the client brought a session."""
    closes: frozenset[bool] = frozenset()
    """The kinds of first messages after which the connection is closed."""


@asynccontextmanager
async def front_of(server: int) -> AsyncIterator[Front]:
    front = Front()

    async def forward(stream: trio.SocketStream) -> None:
        hello = bytes(await stream.receive_some(65536))
        front.hellos.append(_has_ticket(hello))
        if front.hellos[-1] in front.closes:
            return
        async with await trio.open_tcp_stream("127.0.0.1", server) as behind, trio.open_nursery() as nursery:
            await behind.send_all(hello)
            nursery.start_soon(copy, stream, behind)
            await copy(behind, stream)
            nursery.cancel_scope.cancel()

    async with serving(forward) as front.port:
        yield front


async def status_of(transport: Transport, url: str, **route: Any) -> int:
    """Make one request, on a connection of its own."""
    response = await transport.send("GET", Route(url=Url.parse(url), keep=0, **route), [])
    assert [piece async for piece in response.body]
    return response.status


@pytest.mark.parametrize("closes", [frozenset({True}), frozenset({True, False})])
async def test_the_second_try_leaves_a_session_that_came_meanwhile(
    trusting: ssl.SSLContext, closes: frozenset[bool]
) -> None:
    lookups = 0

    async def resolve(host: str, port: int) -> Sequence[str]:
        nonlocal lookups
        lookups += 1
        if lookups == 4:  # of the second try
            front.closes = frozenset()
            assert await status_of(transport, url) == 200  # on another connection, which shares a session
            assert transport.sessions.by_peer
            front.closes = closes
        return ["127.0.0.1"]

    async with (
        open_origin(server_context()) as origin,
        front_of(origin.port) as front,
        open_transport(LOOPBACK, tls=trusting, resolver=resolve) as transport,
    ):
        url = f"https://localhost:{front.port}/bytes/100"
        assert [await status_of(transport, url) for _ in range(2)] == [200, 200]
        front.closes = closes
        if False in closes:
            with pytest.raises(NetError, match="closed during the TLS handshake") as caught:
                await status_of(transport, url)
            assert caught.type is ConnectFailed
        else:
            assert await status_of(transport, url) == 200
    assert front.hellos == [False, True, True, False, False]


async def test_the_second_try_has_no_session_for_the_origin_after_the_proxy_failed(
    trusting: ssl.SSLContext,
) -> None:
    async with (
        open_origin(server_context()) as origin,
        open_proxy("https", server_context()) as proxy,
        front_of(origin.port) as at_origin,
        front_of(proxy.port) as at_proxy,
        opened(trusting) as transport,
    ):
        url = f"https://127.0.0.1:{at_origin.port}/bytes/100"
        via = Url.parse(f"https://127.0.0.1:{at_proxy.port}", "proxy")
        assert await status_of(transport, url, proxy=via) == 200
        at_origin.closes = at_proxy.closes = frozenset({True})
        assert await status_of(transport, url, proxy=via) == 200
    assert (at_proxy.hellos, at_origin.hellos) == ([False, True, False], [False, False])


async def test_a_certificate_that_has_become_invalid_is_refused(trusting: ssl.SSLContext) -> None:
    context = server_context()
    async with open_origin(context) as origin, opened(trusting) as transport:
        assert not await resumed(transport, origin)
        (peer,) = transport.sessions.by_peer
        async with open_origin(server_context("elsewhere.example")) as other:
            session = transport.sessions.take(peer)
            assert session is not None
            url = Url.parse(other.url("/x"))
            transport.sessions.keep(("", "", url.origin, trusting), session)
            with pytest.raises(TlsFailed, match="certificate verify failed"):
                await transport.send("GET", Route(url=url), [])


async def test_the_sessions_are_bounded(trusting: ssl.SSLContext) -> None:
    async with open_origin(server_context()) as origin, opened(trusting) as transport:
        await resumed(transport, origin)
        (peer,) = transport.sessions.by_peer
        session = transport.sessions.take(peer)
    assert session is not None
    sessions = Sessions()
    for number in range(MAX_SESSIONS):
        for _ in range(2):
            sessions.keep(("", "", UrlOrigin("https", str(number), 443, b""), trusting), session)
    assert sum(map(len, sessions.by_peer.values())) == MAX_SESSIONS
    newest = range(MAX_SESSIONS // 2, MAX_SESSIONS)
    assert [origin.host for _, _, origin, _ in sessions.by_peer] == list(map(str, newest))


class Passes(trio.abc.Instrument):
    """Counts, per pass of the event loop, the steps of handshakes that clients compute."""

    def __init__(self) -> None:
        self.steps = self.most = self.total = 0

    def after_io_wait(self, timeout: float) -> None:  # noqa: ARG002 - the interface's
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        self.total += 1
        self.most = max(self.most, self.steps)


async def test_a_burst_of_handshakes_leaves_the_loop_to_others(trusting: ssl.SSLContext) -> None:
    count = 40
    passes = Passes()

    class Counted(ssl.SSLObject):
        def do_handshake(self) -> None:
            passes.step()
            super().do_handshake()

    trusting.sslobject_class = Counted
    context = server_context()
    greeted, all_greeted = 0, trio.Event()

    async def together(stream: trio.SocketStream) -> None:
        """Answer no client before all have sent their first message."""
        nonlocal greeted
        greeted += 1
        if greeted == count:
            all_greeted.set()
        await all_greeted.wait()
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        await tls.do_handshake()
        await tls.receive_some(1)

    handshakes = Handshakes(Sessions())
    dialer = Dialer(policy=LOOPBACK, within_s=5)

    async def connect(port: int, number: int) -> None:
        peer = ("", "", UrlOrigin("https", "127.0.0.1", number, b""), trusting)
        stream = await handshakes.start_tls(await dialer.connect("127.0.0.1", port), peer, within_s=5)
        stream.close()

    async with serving(together) as port:
        trio.lowlevel.add_instrument(passes)
        try:
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(connect, port, number)
        finally:
            trio.lowlevel.remove_instrument(passes)
    assert passes.total >= 2 * count
    assert passes.most <= 8
