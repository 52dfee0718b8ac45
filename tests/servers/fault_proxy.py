"""A TCP proxy in front of a server's unix socket (or port) that loses what a test wants lost.

It knows just enough of RESP to tell which request a reply belongs to: replies come in the order of requests,
and a connection that is trapped carries one command at a time (the client that is tested pipelines only
where it says so).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio

BLOCK_BYTES = 256 * 1024

BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


@dataclass(eq=False)
class _Link:
    """One client's connection and its counterpart."""

    client: trio.SocketStream
    server: trio.SocketStream
    asked: bytes = b""
    """What its client has sent, the last of it."""
    forgotten: bool = False
    """Whether bytes are dropped silently."""
    drop: bool = False
    """Whether the next reply is lost, and the connection with it."""


@dataclass
class FaultProxy:
    """The faults of the network; a test sets them."""

    port: int = 0
    connections: int = 0
    delay_s: float = 0.0
    """Delay of each piece, in either direction, in seconds."""
    black_hole: bool = False
    """Whether all bytes are read and dropped, and no connection is closed."""
    refuse: bool = False
    """New connections are reset at once."""
    lose_reply_to: Callable[[bytes], bool] = lambda _: False
    """Whether a request is carried out and its reply lost."""
    lost: int = 0
    """Replies lost so far."""
    hold_reply_with: bytes = b""
    """A reply with these bytes in it is held back until `let_go`; none by default."""
    held: trio.Event = field(default_factory=trio.Event)
    """Set when such a reply has come."""
    let_go: trio.Event = field(default_factory=trio.Event)
    _links: dict[_Link, None] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def reset_all(self) -> None:
        """Reset every connection."""
        for link in list(self._links):
            _reset(link.client)
            _reset(link.server)

    def heal(self) -> None:
        """The network is as it was; what a black hole swallowed is gone, so its connections are reset."""
        self.black_hole = self.refuse = False
        self.delay_s = 0.0
        self.reset_all()

    def forget(self, command: bytes) -> int:
        """Connections that have carried this command pass nothing on from now; returns how many they are."""
        found = [link for link in self._links if command in link.asked]
        for link in found:
            link.forgotten = True
        return len(found)

    async def forwarded(self, command: bytes, *, seconds: float = 10.0) -> None:
        """Wait until a connection that passes something on has carried this command."""
        with trio.fail_after(seconds):
            while not [link for link in self._links if command in link.asked and not link.forgotten]:
                await self._changed.wait()

    async def lost_replies(self, count: int, *, seconds: float = 20.0) -> None:
        """Wait until so many replies were lost."""
        with trio.fail_after(seconds):
            while self.lost < count:
                await self._changed.wait()

    async def serve(self, client: trio.SocketStream, upstream: Callable[[], object]) -> None:
        self.connections += 1
        if self.refuse:
            _reset(client)
            return
        try:
            server: trio.SocketStream = await upstream()  # type: ignore[misc]  # either kind of stream
        except OSError:
            _reset(client)
            return
        link = _Link(client, server)
        self._links[link] = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._requests, link, nursery.cancel_scope)
                nursery.start_soon(self._replies, link, nursery.cancel_scope)
        finally:
            del self._links[link]
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(client)
                await trio.aclose_forcefully(server)

    async def _requests(self, link: _Link, scope: trio.CancelScope) -> None:
        with suppress(*BROKEN):
            async for block in link.client:
                data = bytes(block)
                if self.black_hole or link.forgotten:
                    continue
                if self.lose_reply_to(data):
                    link.drop = True
                await self._pass(link.server, data)
                link.asked = (link.asked + data)[-BLOCK_BYTES:]
                self._notify()
        scope.cancel()

    async def _replies(self, link: _Link, scope: trio.CancelScope) -> None:
        with suppress(*BROKEN):
            async for block in link.server:
                data = bytes(block)
                if self.black_hole or link.forgotten:
                    continue
                if link.drop:
                    self.lost += 1
                    self._notify()
                    _reset(link.client)
                    break
                if self.hold_reply_with and self.hold_reply_with in data:
                    self.held.set()
                    await self.let_go.wait()
                await self._pass(link.client, data)
        scope.cancel()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _pass(self, to: trio.SocketStream, data: bytes) -> None:
        if self.delay_s:
            await trio.sleep(self.delay_s)
        await to.send_all(data)


def _reset(stream: trio.SocketStream) -> None:
    with suppress(*BROKEN):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()


@asynccontextmanager
async def open_fault_proxy(upstream: Callable[[], object]) -> AsyncIterator[FaultProxy]:
    """A proxy on 127.0.0.1; `upstream` opens a stream to the real server."""
    proxy = FaultProxy()

    async def serve(client: trio.SocketStream) -> None:
        await proxy.serve(client, upstream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
