"""A TCP proxy between a plugin and its server, which can be made to fail in the ways that networks do."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path

import trio

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: a close with this is a reset, which the other end sees at once and as an error."""


class Fault(StrEnum):
    """How a peer fails."""

    AWAY = "away"
    """Every connection is reset as soon as it is made, and those that are open now."""
    SILENT = "silent"
    """Connections are accepted and stay open, and not a byte comes back."""
    CUT = "cut"
    """The peer gets the request, and the connection ends, in good order, in place of its answer."""


class TcpProxy:
    """A running proxy; `open_tcp_proxy` makes one."""

    def __init__(self, target: int | Path) -> None:
        self._target = target
        self._fault: Fault | None = None
        self._connections: set[trio.CancelScope] = set()
        self.port = 0
        """Where it listens, on 127.0.0.1."""

    @contextmanager
    def fault(self, fault: Fault) -> Iterator[None]:
        """Fail like this for as long as the context lasts. Connections that saw it end with it."""
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
        """One connection; for `open_tcp_proxy`."""
        scope = trio.CancelScope()
        self._connections.add(scope)
        try:
            with scope:
                if self._fault is not Fault.AWAY:
                    await self._relay(client)
        except OSError:  # the target does not listen: whoever connects to us sees an end
            return
        finally:
            self._connections.discard(scope)
            if self._fault is Fault.AWAY and client.socket.fileno() >= 0:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            await trio.aclose_forcefully(client)

    async def _relay(self, client: trio.SocketStream) -> None:
        if isinstance(self._target, Path):
            server = await trio.open_unix_socket(self._target)
        else:
            server = await trio.open_tcp_stream("127.0.0.1", self._target)
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
        # One direction is broken, so the connection is: both ends are to hear of it.
        await trio.aclose_forcefully(source)
        await trio.aclose_forcefully(sink)


@asynccontextmanager
async def open_tcp_proxy(target: int | Path) -> AsyncIterator[TcpProxy]:
    """A proxy for as long as the context lasts.

    Args:
        target: what is behind it: a port on 127.0.0.1, or the path of a unix socket.
    """
    proxy = TcpProxy(target)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy.serve, listeners)
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
