"""A TCP proxy between a plugin and its server, with network failures on demand."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path

import trio

from downloader.tasks import background

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing a socket with this sends a reset."""


class Fault(StrEnum):
    """How a peer can fail."""

    AWAY = "away"
    """New connections and open ones are reset."""
    SILENT = "silent"
    """Connections are accepted and stay open, but no byte comes back."""
    CUT = "cut"
    """The peer gets the request, and the connection is closed before its answer."""


class TcpProxy:
    """A running proxy, made by `open_tcp_proxy`."""

    def __init__(self, target: int | Path) -> None:
        self.target = target
        """A port of 127.0.0.1 or the path of a unix socket; another one is for new connections."""
        self._fault: Fault | None = None
        self._connections: set[trio.CancelScope] = set()
        self.port = 0
        """The port of 127.0.0.1 on which it listens."""

    @contextmanager
    def fault(self, fault: Fault) -> Iterator[None]:
        """Fail like this while the context is open; at its end all connections are closed."""
        self._fault = fault
        if fault is Fault.AWAY:
            self._drop()
        try:
            yield
        finally:
            self._fault = None
            self._drop()

    def _drop(self) -> None:
        for scope in self._connections:
            scope.cancel()

    async def serve(self, client: trio.SocketStream) -> None:
        """Serve one connection; for `open_tcp_proxy`."""
        scope = trio.CancelScope()
        self._connections.add(scope)
        try:
            with scope:
                if self._fault is not Fault.AWAY:
                    await self._relay(client)
        except OSError:  # the target does not listen: close the connection
            return
        finally:
            self._connections.discard(scope)
            if self._fault is Fault.AWAY and client.socket.fileno() >= 0:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            await trio.aclose_forcefully(client)

    async def _relay(self, client: trio.SocketStream) -> None:
        if isinstance(self.target, Path):
            server = await trio.open_unix_socket(self.target)
        else:
            server = await trio.open_tcp_stream("127.0.0.1", self.target)
        async with server, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, client, server, False)
            nursery.start_soon(self._pump, server, client, True)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, answers: bool) -> None:  # noqa: FBT001 - for start_soon
        try:
            async for data in source:
                if self._fault is Fault.SILENT:
                    continue
                if self._fault is Fault.CUT and answers:
                    break
                await sink.send_all(data)
            else:
                if self._fault is not Fault.SILENT:
                    await sink.send_eof()
                return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        # A connection that is broken in one direction is closed at both ends.
        await trio.aclose_forcefully(source)
        await trio.aclose_forcefully(sink)


@asynccontextmanager
async def open_tcp_proxy(target: int | Path) -> AsyncIterator[TcpProxy]:
    """Run a proxy while the context is open, before a port of 127.0.0.1 or the path of a unix socket."""
    proxy = TcpProxy(target)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy.port = listeners[0].socket.getsockname()[1]
    async with background(partial(trio.serve_listeners, proxy.serve, listeners)):
        yield proxy
