"""A TCP proxy between a plugin and a server, with network failures on demand."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from downloader.tasks import background

P = TypeVar("P", bound="TcpProxy")

CHUNK_BYTES = 65536

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing a socket with this sends a reset."""


class Fault(StrEnum):
    """How a peer can fail."""

    AWAY = "away"
    """New and open connections are reset."""
    SILENT = "silent"
    """Connections are accepted and stay open, but no byte comes back."""
    CUT = "cut"
    """The peer gets the request, and the connection is closed before the response."""


@dataclass(eq=False)
class Link:
    """One client's connection and the counterpart at the target."""

    client: trio.abc.Stream
    server: trio.abc.Stream
    scope: trio.CancelScope
    """A cancel closes both streams."""
    reset: bool = False
    """Close the client's connection with a reset."""

    def cut(self) -> None:
        """Reset the client's connection, and close the other one."""
        self.reset = True
        self.scope.cancel()


class TcpProxy:
    """A running proxy, made by `open_tcp_proxy`; subclasses decide what becomes of each chunk."""

    link_type: Callable[..., Link] = Link

    def __init__(self, target: int | Path, *, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        """A port of 127.0.0.1, or the path of a unix socket."""
        self.port = 0
        """The port of 127.0.0.1 on which the proxy listens."""
        self.links: set[Link] = set()
        self._tls = tls
        self._fault: Fault | None = None

    async def passed(self, link: Link, data: bytes, *, is_reply: bool) -> bytes:
        """Bytes to pass on in place of a chunk; empty to drop the chunk. May cut the link."""
        del link, is_reply
        return data

    @contextmanager
    def fault(self, fault: Fault) -> Iterator[None]:
        """Fail in the given way while the context is open; at the end all connections are closed."""
        self._fault = fault
        if fault is Fault.AWAY:
            self.drop()
        try:
            yield
        finally:
            self._fault = None
            self.drop()

    def drop(self) -> None:
        """Close every connection."""
        for link in self.links:
            link.reset |= self._fault is Fault.AWAY
            link.scope.cancel()

    async def serve(self, client: trio.SocketStream) -> None:
        """Serve one connection; for `open_tcp_proxy`."""
        reset = self._fault is Fault.AWAY
        try:
            if not reset:
                reset = await self._relay(client)
        except OSError:  # the target does not listen: close the connection
            return
        finally:
            if reset and client.socket.fileno() >= 0:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            await trio.aclose_forcefully(client)

    async def _relay(self, client: trio.SocketStream) -> bool:
        """Pass bytes both ways until the end; returns whether the client's connection is to be reset."""
        if isinstance(self.target, Path):
            server = await trio.open_unix_socket(self.target)
        else:
            server = await trio.open_tcp_stream("127.0.0.1", self.target)
        ours = trio.SSLStream(client, self._tls, server_side=True) if self._tls is not None else client
        async with server, trio.open_nursery() as nursery:
            link = self.link_type(ours, server, nursery.cancel_scope)
            self.links.add(link)
            try:
                async with trio.open_nursery() as pumps:
                    pumps.start_soon(self._pump, link, False)
                    pumps.start_soon(self._pump, link, True)
            finally:
                self.links.discard(link)
        return link.reset

    async def _pump(self, link: Link, is_reply: bool) -> None:  # noqa: FBT001 - for start_soon
        source, sink = (link.server, link.client) if is_reply else (link.client, link.server)
        try:
            while chunk := await source.receive_some(CHUNK_BYTES):
                if self._fault is Fault.SILENT:
                    continue
                if self._fault is Fault.CUT and is_reply:
                    break
                if data := await self.passed(link, bytes(chunk), is_reply=is_reply):
                    await sink.send_all(data)
            else:
                if self._fault is not Fault.SILENT and isinstance(sink, trio.SocketStream):
                    await sink.send_eof()
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        # A connection that is broken in one direction is closed at both ends.
        link.scope.cancel()


@asynccontextmanager
async def open_tcp_proxy(target: int | Path) -> AsyncIterator[TcpProxy]:
    """Run a proxy while the context is open, before a port of 127.0.0.1 or the path of a unix socket."""
    async with serving(TcpProxy(target)) as proxy:
        yield proxy


@asynccontextmanager
async def serving(proxy: P) -> AsyncIterator[P]:
    """Run any proxy while the context is open."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy.port = listeners[0].socket.getsockname()[1]
    async with background(partial(trio.serve_listeners, proxy.serve, listeners)):
        yield proxy
