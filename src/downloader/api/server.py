"""`serve_http`: an ASGI application on hypercorn's protocols, in our own nursery, with every wait bounded.

Served: HTTP/1.1 and 1.0, h2c by upgrade, HTTP/2 by prior knowledge and, with a TLS context, by ALPN. Not
served: WebSocket and lifespan events. `docs/design/http.md` says what hypercorn's own server leaves open.
"""

from __future__ import annotations

import resource
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from email.utils import formatdate
from functools import partial
from math import inf
from pathlib import Path
from time import time
from typing import Any

import trio
from h2.exceptions import H2Error
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H2CProtocolRequiredError, H2ProtocolAssumedError
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from downloader.api.asgi import AsgiApp, Gone
from downloader.api.http1 import HEAD_TIMEOUT, Http1
from downloader.api.http2 import Http2
from downloader.api.limits import PIECE_BYTES, Limits, OpenConnections, client_address
from downloader.api.problems import Refused
from downloader.errors import ConfigError
from downloader.observe import Event as LogEvent
from downloader.observe import get_logger

_log = get_logger()

BACKLOG = 1024
"""Clients that wait to be accepted, as in a burst; the kernel caps it at its own limit."""

_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


async def serve_http(
    app: AsgiApp,
    *,
    sockets: Sequence[socket.socket],
    stop: Callable[[], Awaitable[object]],
    grace_s: float,
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop()` returns, then at most `grace_s` seconds more.

    Connections without a request are closed at once, the others when they have answered it or the grace
    is over. A cancel closes them all.

    Args:
        app: called for each request; an exception of its own is answered 500 and logged.
        sockets: bound; this call makes them listen, owns them and closes them.
        stop: waited for; its result is ignored.
        grace_s: seconds.
        limits: what one client may cost.
        tls: from `tls_context`; `None` for plain TCP.
        task_status: started when the sockets listen.
    """
    config = ServerConfig(limits or Limits())
    context = WorkerContext(None)
    limits = config.limits
    # At least half of the process's descriptors are for what the requests are about.
    most = min(limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    per_address = min(limits.per_address, max(1, most // 2))
    open_connections = OpenConnections(most=most, per_address=per_address, reserve=limits.reserve)

    async def handle(stream: Any) -> None:
        try:
            client = BoundedServer(app, config, context, open_connections, stream)
        except OSError:  # it left before it could be asked for its address
            await trio.aclose_forcefully(stream)
            return
        try:
            await client
        except Exception:  # noqa: BLE001  one connection's trouble must not take the others down
            _log.exception(LogEvent.API_FAILED)

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            listeners = [_listener(sock, tls) for sock in sockets]
            await accepting.start(
                partial(trio.serve_listeners, handle, listeners, handler_nursery=connections)
            )
            task_status.started()
            await stop()
            accepting.cancel_scope.cancel()
        await context.terminated.set()
        connections.cancel_scope.deadline = trio.current_time() + grace_s
        for client in open_connections.ordinary | open_connections.reserved:
            connections.start_soon(client.drain)


def tls_context(certfile: str, keyfile: str) -> ssl.SSLContext:
    """TLS 1.2 or newer with this certificate, HTTP/2 and HTTP/1.1 by ALPN.

    Raises:
        ConfigError: a file cannot be read, or holds no certificate or key, or they do not belong together.
    """
    for key, name in (("api.certfile", certfile), ("api.keyfile", keyfile)):
        try:
            Path(name).read_bytes()
        except OSError as error:
            raise ConfigError(f"{key}: cannot read {name}: {error.strerror}") from None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2", "http/1.1"])
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


def _listener(sock: socket.socket, tls: ssl.SSLContext | None) -> trio.abc.Listener[Any]:
    sock.setblocking(False)
    sock.listen(BACKLOG)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    # HTTPS clients close without TLS's own goodbye, and nobody waits for theirs.
    return listener if tls is None else trio.SSLListener(listener, tls, https_compatible=True)


class ServerConfig(Config):
    """Hypercorn's, with the limits, and the `Date` header made once a second."""

    accesslog = errorlog = None
    keep_alive_max_requests = 50_000  # h2 keeps a record of each

    _date: tuple[int, list[tuple[bytes, bytes]]] = (0, [])

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.h11_max_incomplete_size = self.h2_max_header_list_size = limits.head_bytes
        self.h2_max_concurrent_streams = limits.streams

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:  # noqa: ARG002  the same for both
        """Headers of each answer."""
        now = int(time())
        if now != self._date[0]:
            self._date = (now, [(b"date", formatdate(now, usegmt=True).encode())])
        return self._date[1]


class BoundedServer(TCPServer):
    """One connection; `await` it once. No wait for its client is without a bound, and nothing is shielded."""

    protocol: Http1 | Http2  # type: ignore[assignment]  # without hypercorn's wrapper
    config: ServerConfig

    def __init__(
        self,
        app: AsgiApp,
        config: ServerConfig,
        context: WorkerContext,
        open_connections: OpenConnections,
        stream: Any,
    ) -> None:
        """`stream`: a TCP, unix or TLS stream, owned and closed.

        Raises:
            OSError: the client has left.
        """
        super().__init__(app, config, context, ConnectionState({}), stream)  # type: ignore[arg-type]  # called by `Exchange`
        self.reserved = False
        self._open_connections = open_connections
        self._scope = trio.CancelScope()
        sock = getattr(stream, "transport_stream", stream).socket
        self._peers = (
            parse_socket_addr(sock.family, sock.getpeername()),
            parse_socket_addr(sock.family, sock.getsockname()),
        )
        self.address = client_address(self._peers[0][0]) if self._peers[0] else ""
        self._secure = isinstance(stream, trio.SSLStream)
        self._busy = 0
        """Exchanges that do not wait for the client."""
        self._ending = False
        """Nothing more is sent; what arrives is thrown away."""
        self._head_s = config.limits.head_s
        self._deadline = inf
        """For the client's next bytes."""
        self._waiting = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._sending: set[trio.CancelScope] = set()

    def cut(self) -> None:
        """Close the connection, whatever it is doing."""
        self._scope.cancel()

    def add_busy(self, change: int) -> None:
        """Add to the number of exchanges that do not wait for the client."""
        self._busy += change
        self._open_connections.set_waiting(self, waits=not self._busy)

    async def run(self) -> None:
        """Serve the connection to its end."""
        try:
            if not self._open_connections.add(self):
                return
            if self.reserved:
                self._head_s = self.config.limits.reserve_head_s
            self._set_deadline(self._head_s)
            try:
                with self._scope:
                    await self._serve()
            finally:
                self._open_connections.remove(self)
        except* OSError:  # `Gone` among them
            pass
        finally:
            await trio.aclose_forcefully(self.stream)

    async def _serve(self) -> None:
        alpn = None
        if self._secure:
            try:
                with trio.fail_at(self._deadline):
                    await self.stream.do_handshake()
            except (trio.BrokenResourceError, trio.TooSlowError):
                return
            alpn = self.stream.selected_alpn_protocol()
        async with TaskGroup() as tasks:
            self._args = (
                *(self.app, self.config, self.context, tasks, ConnectionState({}), self._secure),
                *(*self._peers, self.protocol_send),
            )
            if alpn == "h2":
                await self._switch()
            else:
                self.protocol = Http1(self, *self._args)
            await self._read_data()

    async def _switch(
        self,
        data: bytes = b"",
        headers: list[tuple[bytes, bytes]] | None = None,
        settings: bytes | None = None,
    ) -> None:
        self.protocol = Http2(self, *self._args)
        self._set_deadline(self.config.limits.idle_s)
        try:
            await self.protocol.initiate(headers, settings)
        except H2Error:
            await self.protocol_send(Closed())
            return
        await self.protocol.handle(RawData(data=data))

    async def _receive(self, data: bytes) -> None:
        try:
            await self.protocol.handle(RawData(data=data))
        except H2ProtocolAssumedError as assumed:
            await self._switch(assumed.data)
        except H2CProtocolRequiredError as required:
            await self._switch(required.data, required.headers, required.settings)

    async def _read_data(self) -> None:
        """Give the protocol what arrives, to its end; requests that are still running may answer after it."""
        try:
            await self._read_to_end()
        except _BROKEN:
            await self.protocol.handle(Closed())

    async def _read_to_end(self) -> None:
        data: bytes | None = b"?"
        half_head = False
        with self._reading:
            while data and not self._ending:
                data = await self._next_bytes()
                if data:
                    await self._receive(data)
                begins, half_head = not half_head, self.protocol.half_head
                if begins and half_head:
                    self._set_deadline(self._head_s)
        if data is None and half_head and isinstance(self.protocol, Http1):
            await self.protocol.refuse(Refused(HEAD_TIMEOUT))
        if self._ending:
            await self._linger()
        elif data is None:
            await self.protocol.handle(Closed())
        else:
            await self.protocol.end_of_stream()

    async def _next_bytes(self) -> bytes | None:
        """What the client sends next: nothing at its end, `None` when it takes too long."""
        with trio.CancelScope(deadline=self._deadline) as self._waiting:
            return bytes(await self.stream.receive_some(PIECE_BYTES))
        return None

    async def _linger(self) -> None:
        """Send no more, but read on: closing while the client sends would destroy the answer on its way."""
        if not self._secure:
            with suppress(OSError, trio.BusyResourceError):
                await self.stream.send_eof()
        left = self.config.limits.linger_bytes if self.protocol.unread else 0
        with trio.move_on_after(self.config.limits.linger_s):
            while left > 0:
                left -= len(await self.stream.receive_some(PIECE_BYTES)) or left

    def _set_deadline(self, seconds: float) -> None:
        """Bound the wait for the client's next bytes, also one that has begun."""
        self._deadline = self._waiting.deadline = trio.current_time() + seconds

    async def protocol_send(self, event: Event) -> None:
        """Do what the protocol asks for: send bytes, end the connection, note whether it is idle."""
        if isinstance(event, RawData):
            await self._send(event.data)
        elif isinstance(event, Updated):
            self._set_deadline(self.config.limits.idle_s if event.idle else inf)
        elif not self._ending:  # by the reader: an application may be cancelled once it has answered
            self._ending = True
            await self.protocol.handle(Closed())
            self._reading.cancel()

    async def _send(self, data: bytes) -> None:
        async with self.send_lock:
            try:
                with self.send_deadline():
                    await self.stream.send_all(data)
            except _BROKEN:
                await self.protocol.handle(Closed())
            except (Gone, trio.Cancelled):
                self.cut()  # a part of it may have been sent, so nothing may follow
                raise

    @contextmanager
    def send_deadline(self) -> Iterator[None]:
        """A context that bounds the sending of one piece.

        Raises:
            Gone: the client did not take it in time.
        """
        limits = self.config.limits
        limit_s = limits.stop_send_s if self.context.terminated.is_set() else limits.send_s
        with trio.CancelScope(deadline=trio.current_time() + limit_s) as scope:
            self._sending.add(scope)
            try:
                yield
            finally:
                self._sending.discard(scope)
        if scope.cancelled_caught:
            raise Gone

    async def drain(self) -> None:
        """The server stops: take no more requests, close when none is left; sending gets less time."""
        deadline = trio.current_time() + self.config.limits.stop_send_s
        for scope in self._sending:
            scope.deadline = min(scope.deadline, deadline)
        protocol = getattr(self, "protocol", None)
        if isinstance(protocol, Http2):
            await protocol.drain()
        elif protocol is None or protocol.stream is None:
            self.cut()
