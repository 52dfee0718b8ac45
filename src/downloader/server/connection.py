"""One connection: TLS, reading and sending with deadlines, the heads of its requests, and its end."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from math import inf
from pathlib import Path
from time import time
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import parse_socket_addr

from downloader.errors import ConfigError
from downloader.server.asgi import AsgiApp, Gone, Headers, HttpError
from downloader.server.limits import Limits, OpenConnections, State, client_address, deadlines
from downloader.server.parser import Head, Received, bad_request, parse_head
from downloader.server.response import head_bytes

_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


class ServerConfig(Config):
    """Hypercorn's configuration, with our limits and a `Date` header that is made once a second."""

    _date: tuple[int, Headers] = (0, [])

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.deadlines = {reserved: deadlines(limits, reserved=reserved) for reserved in (False, True)}
        """By whether the connection is of the reserve."""

    def response_headers(self, protocol: str = "") -> Headers:  # noqa: ARG002  hypercorn's signature
        """Headers of each response."""
        now = int(time())
        if now != self._date[0]:
            self._date = (now, [(b"date", formatdate(now, usegmt=True).encode())])
        return self._date[1]


class Connection(TCPServer):
    """One connection; `await` it once. Every wait for the client is bounded, and nothing is shielded.

    One task reads the heads and runs the application. Nothing is received that is not asked for: from the end
    of a head to the end of the response only the application reads, by `receive`.
    """

    app: AsgiApp  # type: ignore[assignment]  # called without hypercorn's wrapper
    config: ServerConfig

    def __init__(
        self,
        app: AsgiApp,
        respond: Callable[[Connection, Head], Awaitable[bool]],
        *,
        config: ServerConfig,
        context: WorkerContext,
        open_connections: OpenConnections,
        stream: Any,
    ) -> None:
        """Take over an accepted connection.

        Args:
            app: the application.
            respond: runs the application for a request; returns whether the connection takes another one.
            config: with the limits.
            context: its `terminated` is set when the server stops.
            open_connections: of the server.
            stream: a TCP, unix or TLS stream; owned and closed.

        Raises:
            OSError: the connection is closed already.
        """
        super().__init__(app, config, context, {}, stream)  # type: ignore[arg-type]  # see `app`
        self.received = Received()
        self.reserved = False
        self.secure = isinstance(stream, trio.SSLStream)
        sock = getattr(stream, "transport_stream", stream).socket
        self.client = parse_socket_addr(sock.family, sock.getpeername())
        self.server = parse_socket_addr(sock.family, sock.getsockname())
        self.address = client_address(self.client[0]) if self.client else ""
        self._respond = respond
        self._open_connections = open_connections
        self._state = State.HEAD
        self._deadline = inf
        """Of the state: for the next bytes from the client."""
        self._ended = False
        """The client sends no more."""
        self._scope = trio.CancelScope()
        self._sending = trio.CancelScope()

    def cut(self) -> None:
        """See `ClientConnection`."""
        self._scope.cancel()

    def drain(self) -> None:
        """See `ClientConnection`; sending gets less time."""
        deadline = trio.current_time() + self.config.limits.stop_send_s
        self._sending.deadline = min(self._sending.deadline, deadline)
        if self._state not in (State.BODY, State.RESPONSE):
            self.cut()

    def enter(self, state: State, seconds: float | None = None) -> None:
        """Change the state, and begin its deadline: `seconds`, or those of `deadlines`."""
        if seconds is None:
            seconds = self.config.deadlines[self.reserved][state]
        self._state = state
        self._deadline = trio.current_time() + seconds
        self._open_connections.set_waiting(self, waits=state is not State.RESPONSE)

    async def run(self) -> None:
        """Serve the connection until it is closed."""
        try:
            if self.context.terminated.is_set() or not self._open_connections.add(self):
                return
            try:
                self.enter(State.HEAD)
                with self._scope:
                    await self._serve()
            finally:
                self._open_connections.remove(self)
        except Gone:
            pass
        finally:
            await trio.aclose_forcefully(self.stream)

    async def _serve(self) -> None:
        if self.secure:
            try:
                with trio.fail_at(self._deadline):
                    await self.stream.do_handshake()
            except (trio.BrokenResourceError, trio.TooSlowError):
                return
        try:
            while await self._serve_request():
                self.enter(State.IDLE)
        except HttpError as error:
            await self._refuse(error)
        await self._linger()

    async def _serve_request(self) -> bool:
        """Answer the next request; returns whether another one may follow.

        Raises:
            HttpError: there is no well-formed head.
            Gone: the client has left.
        """
        head = await self._next_head()
        if head is None:
            return False
        self.enter(State.RESPONSE)
        return await self._respond(self, head)

    async def _next_head(self) -> Head | None:
        """The next head; `None` if the client sends no request."""
        limits = self.config.limits
        while (data := self.received.take_head(limits.head_bytes)) is None:
            if self.received and self._state is State.IDLE:
                self.enter(State.HEAD)
            try:
                if await self.read():
                    continue
            except trio.TooSlowError:
                if self.received:
                    detail = "The head of the request did not arrive in time."
                    raise HttpError(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", detail) from None
                return None
            if self.received:
                raise bad_request("The request ends before its head does.")
            return None
        return parse_head(data, most_headers=limits.headers)

    async def _refuse(self, error: HttpError) -> None:
        body = error.body()
        headers = [*error.headers(), (b"content-length", b"%d" % len(body))]
        await self.send(head_bytes(error.status, headers, self.config.response_headers()) + body)

    async def read(self) -> bool:
        """Wait for bytes from the client and add them to `received`; false if it sends no more.

        Raises:
            TooSlowError: the deadline of the state has passed.
            Gone: the client has left.
        """
        if self._ended:
            return False
        with trio.CancelScope(deadline=self._deadline) as scope:
            try:
                data = await self.stream.receive_some(self._open_connections.piece_bytes)
            except _BROKEN:
                raise Gone from None
            self.received.add(data)
            self._ended = not data
        if scope.cancelled_caught:
            raise trio.TooSlowError
        return not self._ended

    async def send(self, data: bytes) -> None:
        """Send bytes, at most `PIECE_BYTES` of a body.

        A cancel ends the connection, since a part may have been sent.

        Raises:
            Gone: the client has left, or does not receive them in time.
        """
        limits = self.config.limits
        seconds = limits.stop_send_s if self.context.terminated.is_set() else limits.send_s
        with trio.CancelScope(deadline=trio.current_time() + seconds) as scope:
            self._sending = scope
            try:
                await self.stream.send_all(data)
            except _BROKEN:
                raise Gone from None
            except trio.Cancelled:
                self.cut()
                raise
        if scope.cancelled_caught:
            raise Gone

    async def _linger(self) -> None:
        """End sending and discard what is received; closing now would reset the connection.

        A client may read the response only after it has sent its whole body.
        """
        self.enter(State.CLOSING)
        stream: Any = self.stream
        left = self.config.limits.linger_bytes
        with trio.move_on_at(self._deadline), suppress(OSError, *_BROKEN):
            if self.secure:
                # Sends close_notify, and waits for the client's; fails if it sends anything else, or closes.
                with suppress(*_BROKEN):
                    await stream.unwrap()
                stream = stream.transport_stream
            else:
                await stream.send_eof()
            while left > 0:
                left -= len(await stream.receive_some(self._open_connections.piece_bytes)) or left


def tls_context(certfile: str, keyfile: str) -> ssl.SSLContext:
    """A server context for TLS 1.2 or newer, with HTTP/1.1 by ALPN.

    Raises:
        ConfigError: a file cannot be read, or they are not a certificate and its unencrypted key.
    """
    for key, name in (("api.certfile", certfile), ("api.keyfile", keyfile)):
        try:
            Path(name).read_bytes()
        except OSError as error:
            raise ConfigError(f"{key}: cannot read {name}: {error.strerror}") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certfile, keyfile, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise ConfigError(
            f"api.certfile, api.keyfile: {certfile} and {keyfile} are no certificate and its key ({reason})"
        ) from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")
