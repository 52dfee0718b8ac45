"""Requests over guarded connections, which are kept alive for some seconds; also a transport for httpx2."""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2
import trio

from downloader.net.connection import Connection
from downloader.net.dial import Dialer, Resolver, SystemResolver
from downloader.net.errors import BadRequest, ConnectionLost, TimedOut
from downloader.net.policy import EgressPolicy
from downloader.net.proxy import connect_socks, connect_tunnel
from downloader.net.request import Route, request_fields
from downloader.net.response import Field
from downloader.net.stream import Stream
from downloader.net.tls import Handshakes, Peer, ResumptionFailed, Sessions
from downloader.net.url import Origin, Url, UrlError
from downloader.tasks import background

_CLIENT_TIMEOUT_S = 30.0
"""Timeout of each wait of a plugin's client; a plugin may set another timeout for a request."""

_REPEATABLE = frozenset({"GET", "HEAD"})
"""Methods of requests that may be sent twice."""

_OURS = frozenset({b"host", b"content-length", b"transfer-encoding"})
"""Fields of a plugin's request that are written anew."""

_UNBOUNDED = nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class NetLimits:
    """Time limits in seconds: constants of the service, which tests make small."""

    connect_s: float = 5.0
    """For resolving and connecting; the same time again for a proxy's response."""
    tls_s: float = 5.0
    response_s: float = 30.0
    """For the whole head of a response, 1xx included."""
    idle_s: float = 10.0
    """How long an idle connection is kept. Servers close idle connections after 5 to 75 s; an aggregation
    with work needs the next connection within milliseconds."""


_Key = tuple[str, str, Origin, ssl.SSLContext]
"""Aggregation, proxy, origin, authorities."""


@dataclass(slots=True)
class _Use:
    """A connection in use by a request."""

    connection: Connection
    key: _Key
    keep: int


class ResponseBody(httpx2.AsyncByteStream):
    """The body of a response, not decoded; returns the connection to the transport at the end."""

    def __init__(self, transport: Transport, use: _Use, *, length: int | None, piece_s: float | None) -> None:
        self.length = length
        """Declared bytes, or `None`."""
        self._transport = transport
        self._use: _Use | None = use
        self._piece_s = piece_s

    async def read(self) -> bytes | bytearray | None:
        """The next bytes, `None` at the end. An exception, a cancel included, closes the connection.

        Raises:
            CutShort, BadResponse: the body is incomplete or malformed.
            TimedOut: httpx's read timeout.
        """
        use = self._use
        if use is None:
            return None
        try:
            with _UNBOUNDED if self._piece_s is None else trio.fail_after(self._piece_s):
                data = await use.connection.read()
        except BaseException as exc:
            self._use = None
            use.connection.close()
            if isinstance(exc, trio.TooSlowError):
                raise TimedOut(f"no more of the response within {self._piece_s:g} s") from exc
            raise
        if data is None:
            await self.aclose()
        return data

    def __aiter__(self) -> AsyncIterator[bytes]:  # no generator: Trio warns about one that is not exhausted
        return self

    async def __anext__(self) -> bytes:
        data = await self.read()
        if data is None:
            raise StopAsyncIteration
        return bytes(data)

    async def aclose(self) -> None:
        """Return the connection, which is closed if the end of the body has not been received."""
        use, self._use = self._use, None
        if use is not None:
            self._transport.give_back(use)


@dataclass(slots=True)
class Response:
    """A response with an unread body."""

    status: int
    fields: Sequence[Field]
    body: ResponseBody
    """To be read or closed."""


class Transport(httpx2.AsyncBaseTransport):
    """Sends requests over guarded connections, kept alive for some seconds; see `open_transport`.

    The number of idle connections is bounded; the oldest is closed first. Callers bound the number in use.
    """

    def __init__(self, dialer: Dialer, *, tls: ssl.SSLContext, limits: NetLimits, max_idle: int) -> None:
        self.dialer = dialer
        self._tls = tls
        self.sessions = Sessions()
        self._handshakes = Handshakes(self.sessions)
        self._limits = limits
        self._max_idle = max_idle
        self._by_key: dict[_Key, list[Connection]] = {}
        self.idle: dict[Connection, tuple[float, _Key]] = {}
        """Idle connections with expiry time and key, in the order of the expiry times."""
        self._filled = trio.Event()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a plugin's request, with the body read into memory; see `send`.

        The URL is checked like the URL of a callback. httpx's read timeout replaces `NetLimits.response_s`.
        """
        try:
            url = Url.parse(str(request.url), "callback")
        except UrlError as exc:
            raise BadRequest(f"the URL {exc.detail}") from exc
        route = Route(url=url, response_s=request.extensions.get("timeout", {}).get("read"))
        fields = [(name, value) for name, value in request.headers.raw if name.lower() not in _OURS]
        response = await self.send(request.method, route, fields, await request.aread())
        return httpx2.Response(response.status, headers=list(response.fields), stream=response.body)

    async def send(
        self, method: str, route: Route, fields: Sequence[Field], content: bytes = b""
    ) -> Response:
        """Send a request with `fields` and the fields that `request_fields` adds.

        If the peer closes a kept connection without a response, a GET or HEAD is sent again once on a new
        connection. Other methods are not repeated, because the peer may have carried out the request (RFC
        9112, 9.3.1). A connection that the peer has closed before the request is always replaced. Redirects
        are not followed. A cancel leaves no connection behind.

        Raises:
            NetError: no response was received.
        """
        key = (
            route.aggregation,
            "" if route.proxy is None else route.proxy.text,
            route.url.origin,
            route.tls or self._tls,
        )
        fields = request_fields(method, route.url, fields, content)
        kept = self._take(key)
        if kept is not None:
            try:
                return await self._send(_Use(kept, key, route.keep), method, route, fields, content)
            except ConnectionLost:
                if method not in _REPEATABLE:
                    raise
        if route.expect is not None:
            route.expect("", math.inf)
        try:
            opened = await self._open(route, resume=True)
        except ResumptionFailed:
            # Other connections may have left sessions meanwhile. Without any, the error is the true reason.
            opened = await self._open(route, resume=False)
        return await self._send(_Use(opened, key, route.keep), method, route, fields, content)

    def give_back(self, use: _Use) -> None:
        """Keep a connection after a response if the connection is reusable, else close the connection."""
        connection = use.connection
        connection.stream.share_session()
        if use.keep <= 0 or not connection.reusable:
            connection.close()
            return
        same_key = self._by_key.setdefault(use.key, [])
        same_key.append(connection)
        self.idle[connection] = (trio.current_time() + self._limits.idle_s, use.key)
        self._filled.set()
        if len(same_key) > use.keep:
            self._drop(same_key[0])
        elif len(self.idle) > self._max_idle:
            self._drop(next(iter(self.idle)))

    def close_idle(self) -> None:
        """Close the idle connections."""
        while self.idle:
            self._drop(next(iter(self.idle)))

    async def sweep(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Close expired connections. Runs until cancelled; sleeps while no connection is idle."""
        task_status.started()
        while True:
            while not self.idle:
                self._filled = trio.Event()
                await self._filled.wait()
            connection, (expires, _) = next(iter(self.idle.items()))
            left_s = expires - trio.current_time()
            if left_s > 0:
                await trio.sleep(left_s)
            else:
                self._drop(connection)

    async def _send(
        self, use: _Use, method: str, route: Route, fields: Sequence[Field], content: bytes
    ) -> Response:
        connection = use.connection
        response_s = route.response_s or self._limits.response_s
        piece_s = None if route.expect else response_s
        if route.phases is not None:
            route.phases.address = connection.address if route.proxy is None else ""
            route.phases.begin("first_byte")
        if route.expect is not None:
            route.expect(f"no response within {response_s:g} s", response_s)
        try:
            with _UNBOUNDED if piece_s is None else trio.fail_after(piece_s):
                head = await connection.request(
                    method.encode(), route.url.target, fields, content, limit=route.answer_bytes
                )
        except BaseException as exc:
            connection.close()
            if isinstance(exc, trio.TooSlowError):
                raise TimedOut(f"no response within {piece_s:g} s") from exc
            raise
        body = ResponseBody(self, use, length=head.length, piece_s=piece_s)
        return Response(head.status, head.fields, body)

    async def _open(self, route: Route, *, resume: bool) -> Connection:
        url, proxy = route.url, route.proxy
        prefix, fields = b"", list[Field]()
        if proxy is None:
            stream = await self.dialer.connect(url.origin.host, url.origin.port, route.phases)
        else:
            await self.dialer.check_target(url.origin.host)
            stream = await self._connect_proxy(route, proxy, resume=resume)
            if url.origin.scheme == "http" and proxy.origin.scheme != "socks5":
                prefix = b"http://" + url.origin.authority
                fields = [(b"Proxy-Authorization", basic)] if (basic := proxy.basic) else []
        if url.origin.scheme == "https":
            stream = await self._start_tls(stream, route, url.origin, resume=resume)
        return Connection(stream, prefix=prefix, extra=fields, address=stream.address)

    async def _connect_proxy(self, route: Route, proxy: Url, *, resume: bool) -> Stream:
        url = route.url
        stream = await self.dialer.connect(proxy.origin.host, proxy.origin.port, route.phases)
        if proxy.origin.scheme == "https":
            stream = await self._start_tls(stream, route, proxy.origin, resume=resume)
        if route.phases is not None:
            route.phases.begin("connect")
        try:
            with trio.fail_after(self._limits.connect_s):
                if proxy.origin.scheme == "socks5":
                    await connect_socks(stream, url.origin, proxy)
                elif url.origin.scheme == "https":
                    await connect_tunnel(stream, url.origin, proxy)
        except BaseException as exc:
            stream.close()
            if isinstance(exc, trio.TooSlowError):
                raise TimedOut(f"no answer of the proxy within {self._limits.connect_s:g} s") from exc
            raise
        return stream

    async def _start_tls(self, stream: Stream, route: Route, origin: Origin, *, resume: bool) -> Stream:
        # What goes through a proxy is not to be recognised as that of another aggregation.
        through = (route.aggregation, route.proxy.text) if route.proxy else ("", "")
        if route.phases is not None:
            route.phases.begin("tls")
        peer: Peer = (*through, origin, route.tls or self._tls)
        return await self._handshakes.start_tls(stream, peer, within_s=self._limits.tls_s, resume=resume)

    def _take(self, key: _Key) -> Connection | None:
        same_key = self._by_key.get(key)
        while same_key:
            connection = same_key[-1]
            self._forget(connection)
            if not connection.is_stale():
                return connection
            connection.close()
            same_key = self._by_key.get(key)
        return None

    def _drop(self, connection: Connection) -> None:
        self._forget(connection)
        connection.close()

    def _forget(self, connection: Connection) -> None:
        _, key = self.idle.pop(connection)
        same_key = self._by_key[key]
        same_key.remove(connection)
        if not same_key:
            del self._by_key[key]


@asynccontextmanager
async def open_transport(
    policy: EgressPolicy,
    *,
    tls: ssl.SSLContext,
    limits: NetLimits | None = None,
    max_idle: int = 256,
    resolver: Resolver | None = None,
) -> AsyncIterator[Transport]:
    """Open a transport with connections that obey `policy`; closes all connections at the end.

    No request may be in progress at the end. `tls`, see `tls_context`, is for all https origins and proxies.
    At most `max_idle` idle connections are kept.
    """
    limits = limits or NetLimits()
    dialer = Dialer(policy=policy, within_s=limits.connect_s, resolver=resolver or SystemResolver())
    transport = Transport(dialer, tls=tls, limits=limits, max_idle=max_idle)
    try:
        async with background(transport.sweep):
            yield transport
    finally:
        transport.close_idle()


def guarded_client(transport: Transport) -> httpx2.AsyncClient:
    """A client for plugins, without redirects, cookies and the environment's proxies.

    Closing the client leaves the transport open. Errors are `NetError`s, which are also httpx2's exceptions.
    """
    return httpx2.AsyncClient(
        transport=transport,
        timeout=_CLIENT_TIMEOUT_S,
        follow_redirects=False,
        trust_env=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        headers={"User-Agent": "downloader", "Accept-Encoding": "identity"},
    )
