"""`serve_http`: an HTTP server for an ASGI application, on hypercorn's protocols, with every wait bounded.

It supports HTTP/1.0 and 1.1, h2c by upgrade, HTTP/2 by prior knowledge and, with TLS, by ALPN. It supports no
WebSockets and no lifespan events. `docs/design/http.md` says why hypercorn's own server is not used.
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
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from downloader.api.asgi import AsgiApp, Gone
from downloader.api.exchange import Shared
from downloader.api.http1 import HEAD_TIMEOUT, Http1, SwitchToHttp2
from downloader.api.http2 import Http2
from downloader.api.limits import Limits, OpenConnections, client_address
from downloader.api.problems import Refused
from downloader.errors import ConfigError
from downloader.observe import Event as LogEvent
from downloader.observe import get_logger

_log = get_logger()

BACKLOG = 1024
"""Connections that wait to be accepted, as in a burst; the kernel has a limit of its own."""

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

    After `stop()` no connection and no request is accepted. Connections without a request are closed at once,
    the others after their response or when the grace period ends. A cancel closes them all.

    Args:
        app: called for each request; if it raises, the request is answered 500 and the error logged.
        sockets: bound stream sockets (TCP or unix); this call listens on them, owns them and closes them.
        stop: for example `wait` of a `trio.Event`; its result is ignored.
        grace_s: seconds.
        limits: limits for clients.
        tls: from `tls_context`; `None` for plain TCP.
        task_status: started when the sockets listen.
    """
    config = ServerConfig(limits or Limits())
    context = WorkerContext(None)
    limits = config.limits
    # The other half of the process's descriptors is for files, the store and so on.
    most = min(limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    per_address = min(limits.per_address, max(1, most // 2))
    open_connections = OpenConnections(
        most=most, per_address=per_address, reserve=limits.reserve, unread_bytes=limits.unread_bytes
    )

    async def handle(stream: Any) -> None:
        try:
            client = BoundedServer(app, config, context, open_connections, stream)
        except OSError:  # it was closed before its address was read
            await trio.aclose_forcefully(stream)
            return
        try:
            await client
        except Exception:  # noqa: BLE001  an error of one connection must not end the others
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
    """A server context for TLS 1.2 or newer, with HTTP/2 and HTTP/1.1 by ALPN.

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
    # Most HTTPS clients close without close_notify, and it is not waited for.
    return listener if tls is None else trio.SSLListener(listener, tls, https_compatible=True)


class ServerConfig(Config):
    """Hypercorn's configuration, with our limits and a `Date` header that is made once a second."""

    accesslog = errorlog = None
    keep_alive_max_requests = 50_000  # h2 keeps a record of each in memory

    _date: tuple[int, list[tuple[bytes, bytes]]] = (0, [])

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.h2_max_header_list_size = limits.head_bytes
        self.h2_max_concurrent_streams = limits.streams

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:  # noqa: ARG002  the same for both
        """Headers of each response."""
        now = int(time())
        if now != self._date[0]:
            self._date = (now, [(b"date", formatdate(now, usegmt=True).encode())])
        return self._date[1]


class BoundedServer(TCPServer):
    """One connection; `await` it once. Every wait for the client is bounded, and nothing is shielded."""

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
        """`stream`: a TCP, unix or TLS stream; owned and closed.

        Raises:
            OSError: the connection is closed already.
        """
        super().__init__(app, config, context, ConnectionState({}), stream)  # type: ignore[arg-type]  # called by `Exchange`
        self._app = app
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
        """Exchanges that are not waiting for the client."""
        self._ending = False
        """Nothing more is sent, and received bytes are discarded."""
        self._half_head = False
        """A part of a head has been received, and the deadline is that of the head."""
        self._head_s = config.limits.head_s
        self._deadline = inf
        """For the next bytes from the client."""
        self._waiting = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._sending: set[trio.CancelScope] = set()

    @property
    def piece_bytes(self) -> int:
        """See `OpenConnections`."""
        return self._open_connections.piece_bytes

    def cut(self) -> None:
        """See `ClientConnection`."""
        self._scope.cancel()

    def add_busy(self, change: int) -> None:
        """See `ClientConnection`."""
        self._busy += change
        self._open_connections.set_waiting(self, waits=not self._busy)

    async def run(self) -> None:
        """Serve the connection until it is closed."""
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
            client, server = self._peers
            shared = Shared(
                app=self._app,
                config=self.config,
                context=self.context,
                tasks=tasks,
                tls=self._secure,
                client=client,
                server=server,
            )
            if alpn == "h2":
                await self._switch(shared, SwitchToHttp2(b""))
            else:
                self.protocol = Http1(self, shared, self.protocol_send)
            await self._read(shared)

    async def _switch(self, shared: Shared, switch: SwitchToHttp2) -> None:
        self.protocol = Http2(self, shared, self.protocol_send)
        self._set_deadline(self.config.limits.idle_s)
        try:
            await self.protocol.initiate(switch.headers, switch.settings)
        except H2Error:
            await self.protocol_send(Closed())
            return
        await self.protocol.handle(RawData(data=switch.data))

    async def _read(self, shared: Shared) -> None:
        """Pass received bytes to the protocol until the stream ends; responses may follow."""
        try:
            await self._read_to_end(shared)
        except _BROKEN:
            await self.protocol.handle(Closed())

    async def _read_to_end(self, shared: Shared) -> None:
        data: bytes | None = b""
        with self._reading:
            while not self._ending and (data := await self._next_bytes()):
                try:
                    await self.protocol.handle(RawData(data=data))
                except SwitchToHttp2 as switch:
                    await self._switch(shared, switch)
                data = b""  # an idle connection need not keep it
                begins, self._half_head = not self._half_head, self.protocol.half_head
                if begins and self._half_head:
                    self._set_deadline(self._head_s)
        if data is None and self._half_head and isinstance(self.protocol, Http1):
            await self.protocol.refuse(Refused(HEAD_TIMEOUT))
        if data is None and not self._ending:
            await self.protocol.handle(Closed())
        if data is None or self._ending:
            await self._linger()
        else:
            await self.protocol.end_of_stream()

    async def _next_bytes(self) -> bytes | None:
        """The next bytes from the client: empty at the end of the stream, `None` after the deadline."""
        # A scope for each read, so that received bytes are not lost if the deadline passes meanwhile.
        with trio.CancelScope(deadline=self._deadline) as self._waiting:
            return bytes(await self.stream.receive_some(self.piece_bytes))
        return None

    async def _linger(self) -> None:
        """End sending and discard what is received; closing now would reset the connection."""
        left = self.config.limits.linger_bytes if self.protocol.unread else 0
        stream: Any = self.stream
        with trio.move_on_after(self.config.limits.linger_s):
            if self._secure:
                # Sends close_notify, and waits for the client's; fails if it sends anything else, or closes.
                with suppress(*_BROKEN, trio.BusyResourceError):
                    await stream.unwrap()
                stream = stream.transport_stream
            else:
                with suppress(OSError, trio.BusyResourceError):
                    await stream.send_eof()
            while left > 0:
                left -= len(await stream.receive_some(self.piece_bytes)) or left

    def _set_deadline(self, seconds: float) -> None:
        """Bound the wait for the client's next bytes, also the running one."""
        self._deadline = self._waiting.deadline = trio.current_time() + seconds

    async def protocol_send(self, event: Event) -> None:
        """Handle an event of the protocol: send bytes, set the deadline, or end the connection."""
        if isinstance(event, RawData):
            if isinstance(self.protocol, Http1):  # one exchange at a time
                await self._send(event.data)
            else:
                async with self.send_lock:
                    await self._send(event.data)
        elif isinstance(event, Updated):
            self._half_head = False  # if another one has begun behind this request, it has its own deadline
            self._set_deadline(self.config.limits.idle_s if event.idle else inf)
        elif not self._ending:  # the reader ends it: this task may be cancelled after the response
            self._ending = True
            await self.protocol.handle(Closed())
            self._reading.cancel()

    async def _send(self, data: bytes) -> None:
        try:
            with self.send_deadline():
                await self.stream.send_all(data)
        except _BROKEN:
            await self.protocol.handle(Closed())
        except (Gone, trio.Cancelled):
            self.cut()  # a part may have been sent, so nothing else can be
            raise

    @contextmanager
    def send_deadline(self) -> Iterator[None]:
        """See `ClientConnection`."""
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
        """See `ClientConnection`; sending gets less time."""
        deadline = trio.current_time() + self.config.limits.stop_send_s
        for scope in self._sending:
            scope.deadline = min(scope.deadline, deadline)
        protocol = getattr(self, "protocol", None)
        if isinstance(protocol, Http2):
            await protocol.drain()
        elif protocol is None or protocol.stream is None:
            self.cut()
