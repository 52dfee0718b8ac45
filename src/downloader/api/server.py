"""`serve_http`: an ASGI application on hypercorn's protocols, in our own nursery, with every wait bounded.

Served: HTTP/1.1 and 1.0, h2c by upgrade, HTTP/2 by prior knowledge and, with a TLS context, by ALPN. Not
served: WebSocket and lifespan events. `docs/design/http.md` says what hypercorn's own server leaves open.
"""

from __future__ import annotations

import resource
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from email.utils import formatdate
from functools import partial
from pathlib import Path
from time import time
from typing import Any

import trio
from h2.exceptions import H2Error
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H2CProtocolRequiredError, H2ProtocolAssumedError
from hypercorn.trio.statsd import StatsdLogger
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from downloader.api.asgi import AsgiApp, Gone
from downloader.api.exchange import Shared
from downloader.api.http1 import HEAD_TIMEOUT, Http1
from downloader.api.http2 import Http2
from downloader.api.places import PIECE_BYTES, Limits, Places, client_address
from downloader.api.problems import Refused
from downloader.errors import ConfigError
from downloader.observe import Event as LogEvent
from downloader.observe import get_logger

_log = get_logger()

BACKLOG = 1024
"""Clients that wait to be accepted, as in a burst; the kernel caps it at its own limit."""


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
    limits = limits or Limits()
    # At least half of the process's descriptors are for what the requests are about.
    most = min(limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
    per_address = min(limits.per_address, max(1, most // 2))
    places = Places(most=most, per_address=per_address, reserve=limits.reserve)
    shared = Shared(app, _config(limits), limits, places)
    open_now: set[BoundedServer] = set()

    async def handle(stream: Any) -> None:
        try:
            connection = BoundedServer(shared, stream)
        except OSError:  # it left before it could be asked for its address
            await trio.aclose_forcefully(stream)
            return
        open_now.add(connection)
        try:
            await connection
        except Exception:  # noqa: BLE001  one connection's trouble must not take the others down
            _log.exception(LogEvent.API_FAILED)
        finally:
            open_now.discard(connection)

    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            listeners = [_listener(sock, tls) for sock in sockets]
            await accepting.start(
                partial(trio.serve_listeners, handle, listeners, handler_nursery=connections)
            )
            task_status.started()
            await stop()
            accepting.cancel_scope.cancel()
        await shared.stop()
        connections.cancel_scope.deadline = trio.current_time() + grace_s
        for connection in list(open_now):
            connections.start_soon(connection.drain)


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


class _Config(Config):
    """Hypercorn's, with the `Date` header made once a second."""

    _date: tuple[int, list[tuple[bytes, bytes]]] = (0, [])

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:  # noqa: ARG002  the same for both
        now = int(time())
        if now != self._date[0]:
            self._date = (now, [(b"date", formatdate(now, usegmt=True).encode())])
        return self._date[1]


def _config(limits: Limits) -> Config:
    config = _Config()
    config.accesslog = config.errorlog = None
    config.set_statsd_logger_class(StatsdLogger)
    config.h11_max_incomplete_size = limits.head_bytes
    config.h2_max_concurrent_streams = limits.streams
    config.h2_max_header_list_size = limits.head_bytes
    return config


class BoundedServer(TCPServer):
    """One connection; `await` it once. No wait for its client is without a bound, and nothing is shielded."""

    protocol: Http1 | Http2  # type: ignore[assignment]  # chosen by `_receive`, instead of a wrapper

    def __init__(self, shared: Shared, stream: Any) -> None:
        """`stream`: a TCP, unix or TLS stream, owned and closed.

        Raises:
            OSError: the client has left.
        """
        super().__init__(shared.app, shared.config, shared.context, ConnectionState({}), stream)  # type: ignore[arg-type]  # called by `Exchange`
        self.shared = shared
        self.reserved = False
        self.busy = 0
        self.scope = trio.CancelScope()
        sock = getattr(stream, "transport_stream", stream).socket
        self._peers = (
            parse_socket_addr(sock.family, sock.getpeername()),
            parse_socket_addr(sock.family, sock.getsockname()),
        )
        self.address = client_address(self._peers[0][0]) if self._peers[0] else ""
        self._ending = False
        self._begun = False
        """There is a `protocol`."""
        self._half_head = False
        self._deadline = trio.current_time() + shared.limits.head_s
        self._reading: trio.CancelScope | None = None

    def cut(self) -> None:
        """Close the connection, whatever it is doing."""
        self.scope.cancel()

    def update(self) -> None:
        """Note whether the connection may be closed for another one."""
        self.shared.places.waits(self, waits=self.busy == 0)

    async def run(self) -> None:
        """Serve the connection until one side has had enough."""
        places = self.shared.places
        try:
            if not places.enter(self):
                return
            if self.reserved:
                self._deadline = trio.current_time() + self.shared.limits.reserve_head_s
            try:
                with self.scope:
                    await self._serve()
            finally:
                places.leave(self)
        except* OSError:  # `Gone` among them
            pass
        finally:
            await trio.aclose_forcefully(self.stream)

    async def _serve(self) -> None:
        secure = isinstance(self.stream, trio.SSLStream)
        alpn = None
        if secure:
            try:
                with trio.fail_at(self._deadline):
                    await self.stream.do_handshake()
            except (trio.BrokenResourceError, trio.TooSlowError):
                return
            alpn = self.stream.selected_alpn_protocol()
        async with TaskGroup() as tasks:
            self._words = (
                *(self.app, self.config, self.context, tasks, ConnectionState({}), secure),
                *self._peers,
                self.protocol_send,
            )
            self._begun = True
            if alpn == "h2":
                await self._switch()
            else:
                self.protocol = Http1(self, *self._words)
            await self._read_data()

    async def _switch(
        self,
        data: bytes = b"",
        headers: list[tuple[bytes, bytes]] | None = None,
        settings: bytes | None = None,
    ) -> None:
        self.protocol = Http2(self, *self._words)
        try:
            await self.protocol.initiate(headers, settings)
        except H2Error:
            await self.protocol_send(Closed())
            return
        self._set_deadline(self.shared.limits.idle_s)
        if data:
            await self.protocol.handle(RawData(data=data))

    async def _receive(self, data: bytes) -> None:
        try:
            await self.protocol.handle(RawData(data=data))
        except H2ProtocolAssumedError as assumed:
            await self._switch(assumed.data)
        except H2CProtocolRequiredError as required:
            await self._switch(required.data, required.headers, required.settings)

    async def _read_data(self) -> None:
        try:
            await self._read_to_end()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self.protocol.handle(Closed())

    async def _read_to_end(self) -> None:
        """Feed the protocol until the connection is to be closed; what still runs then may yet answer."""
        linger_bytes = self.shared.limits.linger_bytes
        while True:
            data = await self._next_bytes()
            if self._ending:
                linger_bytes -= len(data or b"")
                if not data or linger_bytes < 0:
                    return
            elif data:
                await self._receive(data)
                self._bound_the_head()
            elif isinstance(self.protocol, Http2):
                await self.protocol.handle(Closed())
                return
            elif data is not None:
                await self.protocol.end_of_stream()
                return
            elif self.protocol.half_head:
                await self.protocol.refuse(Refused(HEAD_TIMEOUT))
            else:
                return

    async def _next_bytes(self) -> bytes | None:
        """What the client sends next: nothing at its end, `None` when it takes too long."""
        with trio.CancelScope(deadline=self._deadline) as self._reading:
            return bytes(await self.stream.receive_some(PIECE_BYTES))
        return None

    def _bound_the_head(self) -> None:
        """A head that has begun has to be complete in time."""
        half = isinstance(self.protocol, Http1) and self.protocol.half_head
        if half and not self._half_head:
            self._set_deadline(self.shared.limits.head_s)
        self._half_head = half

    def _set_deadline(self, seconds: float) -> None:
        """Bound the wait for the client's next bytes, also one that is on."""
        self._deadline = trio.current_time() + seconds
        if self._reading is not None:
            self._reading.deadline = self._deadline

    async def protocol_send(self, event: Event) -> None:
        """What the protocol has to say: bytes for the client, its end, or whether it is idle."""
        if isinstance(event, RawData):
            await self._send(event.data)
        elif isinstance(event, Closed):
            await self._end()
        elif isinstance(event, Updated):
            self._set_deadline(self.shared.limits.idle_s if event.idle else float("inf"))

    async def _send(self, data: bytes) -> None:
        async with self.send_lock:
            try:
                await self.shared.send_in_time(self.stream.send_all, data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())
            except (Gone, trio.Cancelled):
                self.cut()  # a part of it may have been sent, so nothing may follow
                raise

    async def _end(self) -> None:
        """Send no more; read on for a while if the client is still sending."""
        if self._ending:
            return
        self._ending = True
        clean = isinstance(self.protocol, Http1) and self.protocol.clean
        if not isinstance(self.stream, trio.SSLStream):
            with suppress(
                OSError, trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError
            ):
                await self.stream.send_eof()
        self._set_deadline(0 if clean else self.shared.limits.linger_s)

    async def drain(self) -> None:
        """The server stops: take no more requests, close when none is left."""
        if not self._begun:
            self.cut()
        elif isinstance(self.protocol, Http2):
            await self.protocol.drain()
        elif self.protocol.stream is None:
            self.cut()
