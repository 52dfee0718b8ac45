"""A TCP proxy in front of Redis or Valkey that loses what a test wants lost.

Replies come in the order of requests, and a connection that is trapped carries one command at a time (the
client that is tested pipelines only where it says so), so a reply belongs to the last request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import trio

from downloader.testing import TcpProxy
from downloader.testing.tcp_proxy import Link, serving

REMEMBERED_BYTES = 256 * 1024


@dataclass(eq=False)
class _Link(Link):
    asked: bytes = b""
    """The last bytes from the client."""
    forgotten: bool = False
    """Whether bytes are dropped silently."""
    lose_reply: bool = False
    """Whether the next reply and the connection are lost."""


class FaultProxy(TcpProxy):
    """The faults of the network, set by a test."""

    link_type = _Link

    def __init__(self, target: Path) -> None:
        super().__init__(target)
        self.delay_s = 0.0
        """Delay of each chunk, in either direction, in seconds."""
        self.black_hole = False
        """Whether all bytes are read and dropped, and no connection is closed."""
        self.lose_reply_to: Callable[[bytes], bool] = lambda _: False
        """Whether a request is carried out and the reply lost."""
        self.lost = 0
        """Replies lost so far."""
        self.hold_reply_with = b""
        """A reply with these bytes is held back until `let_go`; none by default."""
        self.held, self.let_go = trio.Event(), trio.Event()
        """`held` is set when such a reply has come."""
        self._changed = trio.Event()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def reset_all(self) -> None:
        """Reset every connection."""
        for link in self.links:
            link.cut()

    def heal(self) -> None:
        """End the faults; connections are reset, because a black hole has swallowed bytes."""
        self.black_hole = False
        self.delay_s = 0.0
        self.reset_all()

    def _that_asked(self, command: bytes) -> list[_Link]:
        links = [cast("_Link", link) for link in self.links]
        return [link for link in links if command in link.asked and not link.forgotten]

    def forget(self, command: bytes) -> int:
        """Stop connections that have carried this command; returns the number of connections."""
        links = self._that_asked(command)
        for link in links:
            link.forgotten = True
        return len(links)

    async def forwarded(self, command: bytes, *, seconds: float = 10.0) -> None:
        """Wait until a connection that passes something on has carried this command."""
        with trio.fail_after(seconds):
            while not self._that_asked(command):
                await self._changed.wait()

    async def lost_replies(self, count: int, *, seconds: float = 20.0) -> None:
        """Wait until so many replies were lost."""
        with trio.fail_after(seconds):
            while self.lost < count:
                await self._changed.wait()

    async def passed(self, link: Link, data: bytes, *, is_reply: bool) -> bytes:
        assert isinstance(link, _Link)
        if self.black_hole or link.forgotten:
            return b""
        if is_reply and link.lose_reply:
            self.lost += 1
            link.cut()
        elif is_reply and self.hold_reply_with and self.hold_reply_with in data:
            self.held.set()
            await self.let_go.wait()
        elif not is_reply:
            link.lose_reply |= self.lose_reply_to(data)
            link.asked = (link.asked + data)[-REMEMBERED_BYTES:]
        self._changed.set()
        self._changed = trio.Event()
        if self.delay_s:
            await trio.sleep(self.delay_s)
        return b"" if link.reset else data


@asynccontextmanager
async def open_fault_proxy(socket: Path) -> AsyncIterator[FaultProxy]:
    """A proxy on 127.0.0.1 in front of a server's unix socket."""
    async with serving(FaultProxy(socket)) as proxy:
        yield proxy
