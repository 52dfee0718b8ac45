"""An HTTP proxy in front of moto that answers as a test says.

A test sets a rule for each operation; requests without one pass to moto.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from downloader.tasks import background
from servers.aws import Moto

BLOCK_BYTES = 256 * 1024


@dataclass
class Asked:
    """One request."""

    operation: str
    """Such as `UploadPart`."""
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    """Lower-case names."""
    body: bytes = b""
    """Set after the request has been read."""


@dataclass
class Exchange:
    """One request, and the means to respond or not."""

    asked: Asked
    head: bytes
    stream: trio.SocketStream
    rest: bytes
    """The part of the body that came with the head."""
    moto: Moto
    at_moto: set[int]
    """The requests that moto works on."""

    async def body(self) -> bytes:
        """The whole body."""
        if self.asked.headers.get("expect") == "100-continue":
            await self.stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        left = int(self.asked.headers.get("content-length", 0)) - len(self.rest)
        blocks = [self.rest]
        while left > 0:
            block = await self.stream.receive_some(min(left, BLOCK_BYTES))
            if not block:
                raise trio.BrokenResourceError
            blocks.append(block)
            left -= len(block)
        self.asked.body = b"".join(blocks)
        return self.asked.body

    async def ask_moto(self, body: bytes) -> bytes:
        """Pass the request on; the whole response."""
        line, _, fields = self.head.partition(b"\r\n")
        kept = [
            one for one in fields.split(b"\r\n") if not one.lower().startswith((b"expect:", b"connection:"))
        ]
        self.at_moto.add(id(self))
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self.moto.port) as server:
                await server.send_all(b"\r\n".join([line, *kept, b"Connection: close", b"", b""]) + body)
                return b"".join([bytes(block) async for block in server])
        finally:
            self.at_moto.discard(id(self))

    async def send(self, response: bytes) -> None:
        head, _, body = response.partition(b"\r\n\r\n")
        await self.stream.send_all(head + b"\r\nConnection: close\r\n\r\n" + body)

    def reset(self) -> None:
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


Rule = Callable[[Exchange], Awaitable[None]]


def response(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A response as bytes on the wire."""
    headers = {"Content_Type": "application/xml"} | headers
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def answer(whole: bytes) -> Rule:
    """Answer this when the body has arrived, without asking moto."""

    async def rule(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.send(whole)

    return rule


async def forward(exchange: Exchange) -> None:
    """Pass the request to moto, and answer as moto does."""
    await exchange.send(await exchange.ask_moto(await exchange.body()))


async def lose_answer(exchange: Exchange) -> None:
    """Let moto carry out the request, and reset the connection instead of a response."""
    await exchange.ask_moto(await exchange.body())
    exchange.reset()


async def hang(exchange: Exchange) -> None:
    """Read the body and answer nothing."""
    await exchange.body()
    await trio.sleep_forever()


async def deaf(exchange: Exchange) -> None:
    """Do not even read the body."""
    await exchange.stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
    await trio.sleep_forever()


async def cut(exchange: Exchange) -> None:
    """Reset the connection in the middle of the body."""
    await exchange.stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
    await exchange.stream.receive_some(BLOCK_BYTES)
    exchange.reset()


@dataclass
class _Scripted:
    rule: Rule
    skip: int
    times: int | None


@dataclass
class Front:
    """The running front."""

    moto: Moto
    parse: Callable[[bytes], Asked]
    """Reads a request's head."""
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    at_moto: set[int] = field(default_factory=set)
    _rules: dict[tuple[str, str], _Scripted] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)

    otherwise: Rule = forward
    """What becomes of requests without a rule."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def counts(self) -> Counter[str]:
        """Requests by operation."""
        return Counter(one.operation for one in self.asked)

    def on(
        self, operation: str, rule: Rule, *, folder: str = "", skip: int = 0, times: int | None = None
    ) -> None:
        """From now on this becomes of such requests: of the first `times`, after `skip` that pass.

        With a `folder`, only of those whose key begins with it. `*` is any operation without a rule.
        """
        self._rules[operation, folder] = _Scripted(rule, skip, times)

    def heal(self) -> None:
        """Let all requests pass from now on."""
        self._rules.clear()

    async def settled(self) -> None:
        """Wait until moto has carried out all requests, also of clients that have given up."""
        with trio.fail_after(60):
            while self.at_moto:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.01)

    async def seen(self, operation: str, count: int = 1, *, seconds: float = 20.0) -> Asked:
        """Wait for the `count`-th such request."""
        with trio.fail_after(seconds):
            while self.counts[operation] < count:
                await self._changed.wait()
        return [one for one in self.asked if one.operation == operation][count - 1]

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            data = b""
            while b"\r\n\r\n" not in data:
                more = await stream.receive_some(BLOCK_BYTES)
                if not more:
                    return
                data += more
            head, _, rest = data.partition(b"\r\n\r\n")
            exchange = Exchange(self.parse(head), head, stream, rest, self.moto, self.at_moto)
            await self._rule(exchange.asked)(exchange)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    def _rule(self, asked: Asked) -> Rule:
        self.asked.append(asked)
        self._changed.set()
        self._changed = trio.Event()
        folder = asked.key.partition("/")[0]
        names = ((asked.operation, folder), (asked.operation, ""), ("*", ""))
        scripted = next((self._rules[name] for name in names if name in self._rules), None)
        if scripted is None:
            return self.otherwise
        if scripted.skip:
            scripted.skip -= 1
            return self.otherwise
        if scripted.times is not None:
            if not scripted.times:
                return self.otherwise
            scripted.times -= 1
        return scripted.rule


def headers_of(head: bytes) -> tuple[str, dict[str, str]]:
    """The request line, and the headers by lower-case names."""
    line, *fields = head.decode("latin-1").split("\r\n")
    return line, {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in fields)}


@asynccontextmanager
async def serving(front: Front) -> AsyncIterator[Front]:
    """Run the front on 127.0.0.1 while the context is open."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=256)
    front.port = listeners[0].socket.getsockname()[1]
    async with background(partial(trio.serve_listeners, front.serve, listeners)):
        yield front
