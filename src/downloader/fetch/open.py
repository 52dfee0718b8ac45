"""Opening connections: straight, through an HTTP proxy, or through a SOCKS5 one."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import h11
import httpcore2
import httpx2
import trio
from socksio import (
    ProtocolError,
    SOCKS5AuthMethod,
    SOCKS5AuthMethodsRequest,
    SOCKS5AuthReply,
    SOCKS5Command,
    SOCKS5CommandRequest,
    SOCKS5Reply,
    SOCKS5ReplyCode,
    SOCKS5UsernamePasswordRequest,
)

from downloader.fetch.connection import MAX_HEAD_BYTES, READ_BYTES, Connection
from downloader.fetch.errors import WIRE_ERRORS, BadResponse, ProxyRefused, explain
from downloader.fetch.request import Target, basic_auth
from downloader.fetch.watch import Watch
from downloader.net import GuardedBackend

_PROXY_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}

_SOCKS_MAX_FIELD_BYTES = 255
"""Lengths are one byte (RFC 1928, RFC 1929)."""

_BAD_PROXY = "the aggregation's proxy is not a valid http, https or socks5 URL"

_SOCKS_ADDRESS_BYTES = {b"\x01": 4, b"\x04": 16}
_SOCKS_NAME = b"\x03"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """An aggregation's proxy."""

    scheme: str
    host: str
    port: int
    user: bytes
    password: bytes
    basic: bytes
    """`Proxy-Authorization`, or empty."""

    @property
    def socks(self) -> bool:
        """Whether it speaks SOCKS5; the proxy resolves names, whether the scheme says `h` or not."""
        return self.scheme in ("socks5", "socks5h")

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """Request headers that the proxy wants to see."""
        return [(b"Proxy-Authorization", self.basic)] if self.basic else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialer:
    """What it takes to open connections."""

    backend: GuardedBackend
    tls: ssl.SSLContext
    """For origins and https proxies alike; offers http/1.1 only."""
    connect_s: float
    tls_s: float

    async def open(self, target: Target, *, proxy: Proxy | None, watch: Watch) -> Connection:
        """A connection on which `target` can be asked for; a cancel leaves no socket behind.

        Raises:
            FetchError: it could not be opened.
        """
        waiting = f"no connection within {self.connect_s:g} s"
        watch.free()
        stream: httpcore2.AsyncNetworkStream | None = None
        prefix, fields = b"", list[tuple[bytes, bytes]]()
        try:
            if proxy is None:
                stream = await self.backend.connect_tcp(target.host, target.port, timeout=self.connect_s)
            else:
                await self.backend.check_target(target.host)
                stream = await self.backend.connect_tcp(proxy.host, proxy.port, timeout=self.connect_s)
                if proxy.scheme == "https":
                    waiting = f"no TLS handshake with the proxy within {self.tls_s:g} s"
                    stream = await stream.start_tls(self.tls, proxy.host, timeout=self.tls_s)
                watch.expect(f"no answer of the proxy within {self.connect_s:g} s", self.connect_s)
                prefix, fields = await _pass_proxy(stream, target, proxy)
                watch.free()
            if target.scheme == "https":
                waiting = f"no TLS handshake within {self.tls_s:g} s"
                stream = await stream.start_tls(self.tls, target.host, timeout=self.tls_s)
        except BaseException as exc:
            if stream is not None:
                with trio.move_on_after(1, shield=True):  # closing a socket waits for nobody
                    await stream.aclose()
            if isinstance(exc, WIRE_ERRORS):
                raise explain(exc, waiting=waiting) from exc
            raise
        return Connection(stream, prefix=prefix, extra=fields)


def parse_proxy(text: str) -> Proxy | None:
    """The aggregation's proxy, `None` for the empty text.

    Raises:
        BadResponse: it is no http, https or socks5 URL; the API refuses such jobs. The text is not
            repeated, as it may hold a password.
    """
    if not text:
        return None
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError) as exc:
        raise BadResponse(_BAD_PROXY) from exc
    host = url.raw_host.decode("ascii")
    if url.scheme not in _PROXY_PORTS or not host:
        raise BadResponse(_BAD_PROXY)
    return Proxy(
        scheme=url.scheme,
        host=host,
        port=url.port or _PROXY_PORTS[url.scheme],
        user=url.username.encode(),
        password=url.password.encode(),
        basic=basic_auth(url.userinfo),
    )


async def _pass_proxy(
    stream: httpcore2.AsyncNetworkStream, target: Target, proxy: Proxy
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Get through the proxy; answers the request line's prefix and the headers that it wants from then on."""
    if proxy.socks:
        await _socks5(stream, target, proxy)
    elif target.scheme == "https":
        await _tunnel(stream, target, proxy)
    else:
        return b"http://" + target.authority, proxy.fields
    return b"", []


async def _tunnel(stream: httpcore2.AsyncNetworkStream, target: Target, proxy: Proxy) -> None:
    """CONNECT (RFC 9110, 9.3.6)."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    authority = f"{host}:{target.port}".encode()
    state = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    request = state.send(
        h11.Request(method=b"CONNECT", target=authority, headers=[(b"Host", authority), *proxy.fields])
    )
    state.send(h11.EndOfMessage())
    assert request is not None
    await stream.write(request)
    while True:
        event = state.next_event()
        if isinstance(event, h11.Response):
            break
        if event is h11.NEED_DATA:
            data = await stream.read(READ_BYTES)
            if not data:
                raise ProxyRefused("the proxy closed the connection")
            state.receive_data(data)
    if event.status_code // 100 != 2:  # noqa: PLR2004 - 2xx
        raise ProxyRefused(f"the proxy answered {event.status_code} to CONNECT")
    if state.trailing_data[0]:
        raise ProxyRefused("the proxy spoke before the origin was asked")


async def _socks5(stream: httpcore2.AsyncNetworkStream, target: Target, proxy: Proxy) -> None:
    """RFC 1928, with RFC 1929 where the proxy's URL has a user."""
    method = SOCKS5AuthMethod.USERNAME_PASSWORD if proxy.user else SOCKS5AuthMethod.NO_AUTH_REQUIRED
    await stream.write(SOCKS5AuthMethodsRequest([method]).dumps())
    if SOCKS5AuthReply.loads(await _exactly(stream, 2)).method != method:
        raise ProxyRefused("the proxy wants another kind of authentication")
    if proxy.user:
        if max(len(proxy.user), len(proxy.password)) > _SOCKS_MAX_FIELD_BYTES:
            raise ProxyRefused("user or password too long for a SOCKS5 proxy")
        await stream.write(SOCKS5UsernamePasswordRequest(proxy.user, proxy.password).dumps())
        if (await _exactly(stream, 2))[1:] != b"\x00":
            raise ProxyRefused("the proxy refused user and password")
    if len(target.host) > _SOCKS_MAX_FIELD_BYTES:
        raise ProxyRefused("host name too long for a SOCKS5 proxy")
    command = SOCKS5CommandRequest.from_address(SOCKS5Command.CONNECT, (target.host, target.port))
    await stream.write(command.dumps())
    head = await _exactly(stream, 4)
    if head[3:] == _SOCKS_NAME:
        head += await _exactly(stream, 1)
        rest = head[-1]
    elif (length := _SOCKS_ADDRESS_BYTES.get(head[3:])) is not None:
        rest = length
    else:
        raise ProtocolError("unknown address type")
    reply = SOCKS5Reply.loads(head + await _exactly(stream, rest + 2))
    if reply.reply_code is not SOCKS5ReplyCode.SUCCEEDED:
        raise ProxyRefused(f"the proxy could not connect: {reply.reply_code.name.lower().replace('_', ' ')}")


async def _exactly(stream: httpcore2.AsyncNetworkStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.read(count - len(data))
        if not more:
            raise ProxyRefused("the proxy closed the connection")
        data += more
    return data
