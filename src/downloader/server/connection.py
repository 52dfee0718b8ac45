"""Connections with a deadline for each wait, and which connection is closed when too many are open."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.utils import formatdate
from math import inf
from time import time
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import parse_socket_addr

from downloader import sockets
from downloader.server.asgi import AsgiApp, Gone, Headers
from downloader.server.limits import PIECE_BYTES, Limits, State, client_address, deadlines
from downloader.server.parser import Received

SMALLEST_PIECE_BYTES = 4 * 1024
"""Least size of a read, however many connections share `Limits.unread_bytes`."""

_BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)


class ServerConfig(Config):
    """Hypercorn's configuration, with our limits and a `Date` header that is made once a second."""

    _date: tuple[int, Headers] = (0, [])

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.deadlines = {reserved: deadlines(limits, reserved=reserved) for reserved in (False, True)}
        """By whether the connection belongs to the reserve."""

    def response_headers(self, protocol: str = "") -> Headers:  # noqa: ARG002  hypercorn's signature
        """Headers of each response."""
        now = int(time())
        if now != self._date[0]:
            self._date = (now, [(b"date", formatdate(now, usegmt=True).encode())])
        return self._date[1]


class Connection(TCPServer):
    """A connection, to be awaited once. Every wait for the client is bounded, and nothing is shielded.

    A single task reads the heads and runs the application. From the end of a head to the end of the response,
    bytes are only received when the application calls `receive`.
    """

    app: AsgiApp  # type: ignore[assignment]  # called without hypercorn's wrapper
    config: ServerConfig

    def __init__(
        self,
        app: AsgiApp,
        serve_requests: Callable[[Connection], Awaitable[None]],
        *,
        config: ServerConfig,
        context: WorkerContext,
        open_connections: OpenConnections,
        stream: Any,
    ) -> None:
        """Take over an accepted connection.

        Args:
            app: the application.
            serve_requests: reads requests and sends responses, and returns after the last response.
            config: has the limits.
            context: `terminated` is set when the server stops.
            open_connections: the connections of the server.
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
        self._serve_requests = serve_requests
        self._open_connections = open_connections
        self._state = State.HEAD
        self._deadline = inf
        """Trio time until which the next bytes from the client must come, in the present state."""
        self._ended = False
        """The client has ended sending."""
        self.gone = False
        """The client has left, or does not read."""
        self._scope = trio.CancelScope()
        self._sending = trio.CancelScope()
        self._plain = None if self.secure else stream
        """The stream if it has no TLS; `sockets` sends and receives on it with less CPU."""

    def cut(self) -> None:
        """Close the connection at once."""
        self._scope.cancel()

    def drain(self) -> None:
        """Accept no further request, shorten the time for sending, and close after the response."""
        deadline = trio.current_time() + self.config.limits.stop_send_s
        self._sending.deadline = min(self._sending.deadline, deadline)
        if self._state not in (State.BODY, State.RESPONSE):
            self.cut()

    def enter(self, state: State, seconds: float | None = None) -> None:
        """Change the state. Its deadline is in `seconds`, by default as in `ServerConfig.deadlines`."""
        if seconds is None:
            seconds = self.config.deadlines[self.reserved][state]
        self._state = state
        self._deadline = trio.current_time() + seconds
        self._open_connections.set_waiting(self, waits=state is not State.RESPONSE)

    def begin_head(self) -> None:
        """Note that bytes of a head have come. The first head's deadline began with the connection."""
        if self._state is State.IDLE:
            self.enter(State.HEAD)

    async def run(self) -> None:
        """Serve the connection until the close."""
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
        await self._serve_requests(self)
        await self._linger()

    async def read(self, pieces: int = 1) -> bool:
        """Wait for bytes from the client, to be added to `received`; false if the client has ended sending.

        At most `pieces` times `OpenConnections.piece_bytes` are received.

        Raises:
            TooSlowError: the deadline of the state has passed.
            Gone: the client has left.
        """
        if self._ended:
            return False
        with trio.CancelScope(deadline=self._deadline) as scope:
            try:
                most = pieces * self._open_connections.piece_bytes
                if self._plain is None:
                    data = await self.stream.receive_some(most)
                else:
                    data = await sockets.receive(self._plain, most)
            except _BROKEN:
                self.gone = True
                raise Gone from None
            self.received.add(data)
            self._ended = not data
        if scope.cancelled_caught:
            raise trio.TooSlowError
        return not self._ended

    async def send(self, data: bytes) -> None:
        """Send bytes, at most `PIECE_BYTES` of a body.

        A cancel after the first checkpoint ends the connection, because a part may have been sent.

        Raises:
            Gone: the client has left, or does not receive the bytes in time.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._plain is not None:  # no deadline: sends only what the socket takes at once
            try:
                data = data[sockets.send_now(self._plain, data) :]
            except _BROKEN:
                self.gone = True
                raise Gone from None
            if not data:
                return
        limits = self.config.limits
        seconds = limits.stop_send_s if self.context.terminated.is_set() else limits.send_s
        with trio.CancelScope(deadline=trio.current_time() + seconds) as scope:
            self._sending = scope
            try:
                await self.stream.send_all(data)
            except _BROKEN:
                self.gone = True
            except trio.Cancelled:
                self.gone = True
                self.cut()
                raise
        if self.gone:
            raise Gone

    async def _linger(self) -> None:
        """End sending, then discard received bytes for a while before the close.

        A client may read the response only after sending the whole body. An immediate close would reset the
        connection before that.
        """
        self.enter(State.CLOSING)
        stream: Any = self.stream
        left_bytes = self.config.limits.linger_bytes
        with trio.move_on_at(self._deadline), suppress(OSError, *_BROKEN):
            if self.secure:
                # Sends close_notify and waits for the client's. Fails if the client sends other bytes, or
                # closes.
                with suppress(*_BROKEN):
                    await stream.unwrap()
                stream = stream.transport_stream
            else:
                await stream.send_eof()
            while left_bytes > 0:
                data = await stream.receive_some(self._open_connections.piece_bytes)
                if not data:
                    break
                left_bytes -= len(data)


class OpenConnections:
    """The connections of a server.

    At the limit of all connections, or of those from an address, a new connection replaces the one that has
    waited longest for bytes of a request. If no connection waits, the new connection goes to the reserve.
    """

    def __init__(self, limits: Limits) -> None:
        # The other half of the process's descriptors is for files, the store and so on.
        self._most = min(limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        self._per_address = min(limits.per_address, max(1, self._most // 2))
        self._reserve = limits.reserve
        self._unread_bytes = limits.unread_bytes
        self.ordinary: set[Connection] = set()
        self.reserved: set[Connection] = set()
        self._addresses: Counter[str] = Counter()
        self._waiting: dict[Connection, None] = {}
        """Connections that wait for the client and may be closed, the longest waiting first."""

    @property
    def piece_bytes(self) -> int:
        """Most bytes to read at once from a connection; the more connections, the fewer."""
        share = self._unread_bytes // max(1, len(self.ordinary))
        return max(SMALLEST_PIECE_BYTES, min(PIECE_BYTES, share))

    def add(self, new: Connection) -> bool:
        """Count a new connection, and set `reserved`; false if the reserve is full too."""
        crowded = new.address != "" and self._addresses[new.address] >= self._per_address
        full = crowded or len(self.ordinary) >= self._most
        if full and not self._cut_one(new.address if crowded else ""):
            if len(self.reserved) >= self._reserve and not self._cut_one("", reserved=True):
                return False
            new.reserved = True
        if new.reserved:
            self.reserved.add(new)
        else:
            self.ordinary.add(new)
            self._addresses[new.address] += 1
        self._waiting[new] = None
        return True

    def remove(self, closed: Connection) -> None:
        """Forget a closed connection."""
        self._waiting.pop(closed, None)
        if closed.reserved:
            self.reserved.discard(closed)
            return
        self.ordinary.discard(closed)
        self._addresses[closed.address] -= 1
        if not self._addresses[closed.address]:
            del self._addresses[closed.address]

    def set_waiting(self, connection: Connection, *, waits: bool) -> None:
        """Note whether a connection waits for the client, and so may be replaced."""
        if waits:
            self._waiting.setdefault(connection)
        else:
            self._waiting.pop(connection, None)

    def _cut_one(self, address: str, *, reserved: bool = False) -> bool:
        """Close the longest waiting connection, of `address` if not empty; false if no connection waits."""
        for connection in self._waiting:
            if connection.reserved is reserved and address in ("", connection.address):
                del self._waiting[connection]
                connection.cut()
                return True
        return False
