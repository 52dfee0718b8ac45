"""The transport on real sockets: what is kept, what is bounded, what a stranger's client gets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import trio

from downloader.net import (
    BadRequest,
    ConnectFailed,
    ConnectionLost,
    CutShort,
    EgressPolicy,
    EgressRefused,
    NameNotResolved,
    NetLimits,
    Response,
    Route,
    TimedOut,
    TlsFailed,
    Transport,
    Url,
    guarded_client,
    open_transport,
    tls_context,
)
from servers.certs import server_context, write_authority
from servers.loopback import Names
from servers.origin import Exchange, Handler, Origin, open_origin, raw, respond
from servers.ports import spare_port
from servers.proxies import open_proxy

LOOPBACK = EgressPolicy.parse(["127.0.0.1", "localhost"], setting="egress.callbacks")
PUBLIC_ONLY = EgressPolicy.parse(setting="egress.callbacks")
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with open_origin() as running:
        yield running


@asynccontextmanager
async def opened(policy: EgressPolicy = LOOPBACK, **options: Any) -> AsyncIterator[Transport]:
    async with open_transport(policy, **{"tls": tls_context(), **options}) as transport:
        yield transport


async def get(transport: Transport, url: str, **route: Any) -> tuple[int, bytes]:
    response = await transport.send("GET", Route(url=Url.parse(url), **route), [(b"Accept", b"*/*")])
    return response.status, await content_of(response)


async def content_of(response: Response) -> bytes:
    return b"".join([piece async for piece in response.body])


# Connections


async def test_a_connection_is_used_again_by_its_aggregation_only(origin: Origin) -> None:
    async with opened() as transport:
        for aggregation in ("a", "a", "b", "a"):
            assert await get(transport, origin.url("/bytes/10"), aggregation=aggregation)
        assert origin.connections == 2
    await origin.wait_until(lambda: origin.open_connections == 0)


async def test_a_body_that_has_arrived_need_not_be_read(origin: Origin) -> None:
    async with opened() as transport:
        for path in ("/bytes/10", "/bytes/30000000", "/bytes/10"):
            response = await transport.send("GET", Route(url=Url.parse(origin.url(path))), [])
            await response.body.aclose()
        # The third found no kept one, as the second's body was on its way.
        assert [request.connection for request in origin.requests] == [1, 1, 2]


async def test_idle_connections_are_bounded_and_expire(origin: Origin) -> None:
    async with opened(max_idle=3) as transport:
        for number in range(6):
            await get(transport, origin.url("/bytes/1"), aggregation=str(number))
        await origin.wait_until(lambda: origin.open_connections == 3)
    async with opened(limits=NetLimits(idle_s=0.01)) as transport:
        await get(transport, origin.url("/bytes/1"))
        await origin.wait_until(lambda: origin.open_connections == 0)


def resetting(origin: Origin) -> Route:
    """The route of a resource that answers all requests but the second, whose connection is reset."""

    async def answer(exchange: Exchange) -> None:
        if len(origin.requests) == 2:
            await raw(b"", "rst")(exchange)
        else:
            await respond(204)(exchange)

    return Route(url=Url.parse(origin.on("/x", answer)))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_kept_connection_that_is_closing_is_replaced_once(origin: Origin, method: str) -> None:
    route = resetting(origin)
    async with opened() as transport:
        for _ in range(2):
            response = await transport.send(method, route, [], b"")
            assert await content_of(response) == b""
    assert [request.connection for request in origin.requests] == [1, 1, 2]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_a_request_that_may_have_been_carried_out_is_not_repeated(origin: Origin, method: str) -> None:
    route = resetting(origin)
    async with opened() as transport:
        response = await transport.send(method, route, [], b"1")
        await content_of(response)
        with pytest.raises(ConnectionLost):
            await transport.send(method, route, [], b"2")
    assert [request.connection for request in origin.requests] == [1, 1]


async def test_a_kept_connection_whose_end_has_come_is_replaced_for_each_method(origin: Origin) -> None:
    url = origin.on("/x", raw(OK + b"Content-Length: 1\r\n\r\nx", "close"))
    route = Route(url=Url.parse(url))
    async with opened() as transport:
        for _ in range(2):
            response = await transport.send("POST", route, [], b"1")
            assert await content_of(response) == b"x"
            await origin.wait_until(lambda: origin.open_connections == 0)
    assert [request.connection for request in origin.requests] == [1, 2]


async def test_a_kept_connection_that_breaks_in_its_response_is_not_asked_again(origin: Origin) -> None:
    async def once(exchange: Exchange) -> None:
        await (respond(200, b"x") if len(origin.requests) == 1 else raw(OK, "close"))(exchange)

    url = origin.on("/x", once)
    async with opened() as transport:
        await get(transport, url)
        with pytest.raises(CutShort):
            await get(transport, url)
    assert len(origin.requests) == 2


async def test_a_cancel_leaves_no_connection(origin: Origin) -> None:
    async with opened() as transport:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(get, transport, origin.url("/hang"))
                await origin.seen("/hang")
                scope.cancel()
        await origin.wait_until(lambda: origin.open_connections == 0)


# Failures


@pytest.mark.slow
async def test_each_failure_has_its_exception_type(origin: Origin) -> None:
    names = Names(private_test=[["10.0.0.1"]])
    async with opened(resolver=names, limits=NetLimits(response_s=1)) as transport:
        with pytest.raises(EgressRefused):
            await get(transport, "http://private.test/")
        with pytest.raises(NameNotResolved):
            await get(transport, "http://unknown.test/")
        with pytest.raises(ConnectFailed, match="connection refused") as caught:
            await get(transport, f"http://127.0.0.1:{spare_port()}/")
        assert caught.value.errno
        with pytest.raises(ConnectionLost):
            await get(transport, origin.on("/x", raw(b"")))
        with pytest.raises(TimedOut, match=r"no response within 1 s"):
            await get(transport, origin.url("/hang"))
        with pytest.raises(TimedOut, match="no more of the response"):
            await get(transport, origin.on("/y", raw(OK + b"\r\nx", "hang")))
    async with open_origin(server_context()) as secure, opened() as transport:
        with pytest.raises(TlsFailed):
            await get(transport, secure.url("/bytes/1"))
    await origin.wait_until(lambda: origin.open_connections == 0)


async def test_tls_failures_behind_a_proxy_leave_nothing(tmp_path: Any) -> None:
    async with (
        open_origin(server_context("elsewhere.example")) as secure,
        open_proxy("http") as proxy,
        opened(tls=tls_context(write_authority(tmp_path))) as transport,
    ):
        for _ in range(3):
            with pytest.raises(TlsFailed):
                await get(transport, secure.url("/x"), proxy=Url.parse(proxy.url(), "proxy"))
        await secure.wait_until(lambda: secure.open_connections == 0)


# A stranger's client


@asynccontextmanager
async def lent(policy: EgressPolicy = LOOPBACK) -> AsyncIterator[httpx2.AsyncClient]:
    async with opened(policy) as transport, guarded_client(transport) as client:
        yield client


async def test_a_client_posts_and_reads(origin: Origin) -> None:
    origin.on(
        "/hook", respond(200, b'{"ok": true}', [("Set-Cookie", "a=b"), ("Content-Type", "application/json")])
    )
    async with lent() as client:
        for _ in range(2):
            response = await client.post(origin.url("/hook", userinfo="us:er@"), json={"a": 1})
            assert response.raise_for_status().json() == {"ok": True}
    first, second = origin.requests
    assert first.raw.endswith(b'\r\n\r\n{"a":1}')
    assert first.headers["content-length"] == "7"
    assert first.headers["user-agent"] == "downloader"
    assert first.headers["authorization"] == "Basic dXM6ZXI="
    assert first.headers["host"] == f"127.0.0.1:{origin.port}"
    assert "cookie" not in second.headers
    assert origin.connections == 1


async def test_a_body_of_unknown_length_is_sent_with_one(origin: Origin) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"ab"
        yield b"c"

    async with lent() as client:
        await client.put(origin.on("/x", respond(200)), content=parts())
    assert origin.requests[0].headers["content-length"] == "3"
    assert "transfer-encoding" not in origin.requests[0].headers


async def test_redirects_are_not_followed(origin: Origin) -> None:
    async with lent() as client:
        response = await client.get(origin.on("/x", respond(302, b"", [("Location", "/y")])))
    assert response.status_code == 302
    assert len(origin.requests) == 1


async def test_a_client_is_guarded(origin: Origin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with lent(PUBLIC_ONLY) as client:
        for host in ("127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]"):
            with pytest.raises(EgressRefused):
                await client.get(origin.url("/x", host=host))
        for url in ("http://93.184.216.34:6379/", "http://%31%32%37.0.0.1/", "ftp://example.org/"):
            with pytest.raises(BadRequest):
                await client.get(url)
    assert origin.connections == 0


@pytest.mark.parametrize(
    ("handler", "kind"),
    [
        (raw(b""), httpx2.NetworkError),
        (raw(b"HTTP/1.1 200 OK\r\n"), httpx2.RemoteProtocolError),
        (raw(b"SSH-2.0\r\n"), httpx2.RemoteProtocolError),
        (raw(b"", "hang"), httpx2.TimeoutException),
    ],
)
async def test_the_exceptions_of_a_client_are_those_of_httpx2(
    origin: Origin, handler: Handler, kind: type[httpx2.TransportError]
) -> None:
    async with lent() as client:
        client.timeout = httpx2.Timeout(0.05 if kind is httpx2.TimeoutException else 30.0)
        with pytest.raises(kind) as caught:
            await client.get(origin.on("/x", handler))
        assert caught.value.request.url.path == "/x"


async def test_closing_a_client_leaves_the_transport_open(origin: Origin) -> None:
    make: Callable[[Transport], httpx2.AsyncClient] = guarded_client
    async with opened() as transport:
        for _ in range(2):
            async with make(transport) as client:
                assert (await client.get(origin.url("/bytes/3"))).status_code == 200
    assert origin.connections == 1
