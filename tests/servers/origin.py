"""A hostile HTTP origin on loopback: real sockets, scripted by path.

In a test::

    async with open_origin() as origin:
        origin.on("/x", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", then="rst"))
        ... origin.url("/x") ... await origin.seen("/x") ... origin.peak["/x"]

As a process, with the built-in paths only: `python -m servers.origin --port 0` (prints its port first).
Built-in paths: `/bytes/N?seed=S`, `/slow/SECONDS/N`, `/status/CODE?retry_after=S`, `/redirect/N`,
`/hang`, `/drip/N/SECONDS`, `/one-byte-chunks/N` (chunks of one byte),
`/flaky/N/CODE/BYTES?key=K` (fails N times for each K), and `/_stats`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import trio

BLOCK_BYTES = 64 * 1024
Then = Literal["keep", "close", "rst", "hang"]
PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x02\x00\x00\x00\x03\x08\x02\x00\x00\x00\x12\x16\xf1\x4d"
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request as received."""

    method: str
    target: str
    headers: dict[str, str]
    """Lower-case names."""
    raw: bytes
    connection: int
    """Number of the connection, from 1."""

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    def query(self, name: str, default: str = "") -> str:
        return parse_qs(urlsplit(self.target).query).get(name, [default])[0]


class Exchange:
    """One request and the means to respond."""

    def __init__(self, request: Request, stream: trio.abc.Stream, raw: trio.SocketStream) -> None:
        self.request = request
        self.stream = stream
        self.keep = True
        """Whether the connection is to serve another request afterwards."""
        self.over: Callable[[], None] = lambda: None
        """Ends the count of this request in `Origin.current`. Called before the last bytes are sent: the next
        request, which those bytes may cause, may be served before the task that has sent them goes on."""
        self.raw = raw

    def buffer(self, size: int) -> None:
        """Let `send` return before a peer that is frozen has read so many bytes."""
        # Trio allows 16 KiB of what the peer's window has no room for.
        self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2 * size)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def respond(self, status: int, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> None:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self.over()
        await self.send(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body)

    async def end(self, then: Then) -> None:
        """Keep, close or reset the connection, or stay silent until the peer goes."""
        if then == "keep":
            return
        self.keep = False
        if then == "rst":
            self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.raw.socket.close()
        elif then == "hang":
            while await self.raw.receive_some(BLOCK_BYTES):
                pass


Handler = Callable[[Exchange], Awaitable[None]]


def raw(data: bytes, then: Then = "close") -> Handler:
    """Answer with exactly these bytes."""

    async def handler(exchange: Exchange) -> None:
        await exchange.send(data)
        await exchange.end(then)

    return handler


def respond(status: int, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> Handler:
    """Answer with a well-formed response."""
    fields = list(headers)

    async def handler(exchange: Exchange) -> None:
        await exchange.respond(status, body, fields)

    return handler


def repeat(
    start: bytes, unit: bytes, *, interval_s: float = 0.0, end: bytes = b"", count: int | None = None
) -> Handler:
    """`start`, then `unit` again and again (for ever without `count`), then `end`, then close."""

    async def handler(exchange: Exchange) -> None:
        exchange.keep = False
        await exchange.send(start)
        sent = 0
        while count is None or sent < count:
            await exchange.send(unit)
            sent += 1
            await trio.sleep(interval_s)
        await exchange.send(end)

    return handler


def gate(event: trio.Event, then: Handler) -> Handler:
    """Wait for the event, then answer."""

    async def handler(exchange: Exchange) -> None:
        await event.wait()
        await then(exchange)

    return handler


def body_of(size: int, seed: str = "") -> bytes:
    """The bytes that `/bytes/SIZE?seed=SEED` answers."""
    return b"".join(_blocks(size, seed))


def _blocks(size: int, seed: str) -> Iterable[bytes]:
    # As the start of a file without a known signature, and different for every seed.
    block = hashlib.shake_256(seed.encode()).digest(BLOCK_BYTES)
    for start in range(0, size, BLOCK_BYTES):
        yield block[: min(BLOCK_BYTES, size - start)]


@dataclass
class Origin:
    """The running server."""

    port: int
    scheme: str
    routes: dict[str, Handler] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    current: Counter[str] = field(default_factory=Counter)
    """Requests being answered, by path, by first segment (`/bytes`), and in all (`""`)."""
    peak: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    open_connections: int = 0
    record: bool = True
    _changed: trio.Event = field(default_factory=trio.Event)
    _counts: Counter[str] = field(default_factory=Counter)
    _flaky: Counter[str] = field(default_factory=Counter)

    def url(self, path: str, *, host: str = "127.0.0.1", userinfo: str = "") -> str:
        return f"{self.scheme}://{userinfo}{host}:{self.port}{path}"

    def on(self, path: str, handler: Handler) -> str:
        """Set the response for a path; returns the URL."""
        self.routes[path] = handler
        return self.url(path)

    def asked(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    async def wait_until(self, condition: Callable[[], bool], *, seconds: float = 5.0) -> None:
        """Wait until a condition on this server's state is true."""
        with trio.fail_after(seconds):
            while not condition():
                await self._changed.wait()

    async def seen(self, path: str, count: int = 1) -> None:
        """Wait until the path has been asked for so many times."""
        await self.wait_until(lambda: self._counts[path] >= count)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def serve(self, raw_stream: trio.SocketStream, tls: ssl.SSLContext | None) -> None:
        self.connections += 1
        self.open_connections += 1
        number = self.connections
        stream: trio.abc.Stream = raw_stream
        if tls is not None:
            stream = trio.SSLStream(raw_stream, tls, server_side=True, https_compatible=True)
        try:
            buffer = b""
            while (request := await self._read_request(stream, buffer, number)) is not None:
                exchange = Exchange(request, stream, raw_stream)
                await self._answer(exchange)
                if not exchange.keep:
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            self.open_connections -= 1
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(raw_stream)
            self._notify()

    async def _read_request(self, stream: trio.abc.Stream, data: bytes, number: int) -> Request | None:
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(BLOCK_BYTES)
            if not more:
                return None
            data += more
            if not data[:1].isalpha():
                await stream.send_all(b"HTTP/1.1 400 X\r\nConnection: close\r\n\r\n")
                return None
        head = data.partition(b"\r\n\r\n")[0].decode("latin-1")
        line, *fields = head.split("\r\n")
        method, target, _ = line.split(" ", 2)
        headers = {}
        for text in fields:
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        return Request(method, target, headers, data, number)

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        path = request.path
        keys = {"", path, "/" + path.split("/")[1]}
        for key in keys:
            self.current[key] += 1
            self.peak[key] = max(self.peak[key], self.current[key])
        self._counts[path] += 1
        if self.record:
            self.requests.append(request)
        self._notify()
        with ExitStack() as counted:
            counted.callback(self._end_count, keys)
            exchange.over = counted.close
            handler = self.routes.get(path) or self._built_in
            await handler(exchange)

    def _end_count(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.current[key] -= 1
        self._notify()

    async def _built_in(self, exchange: Exchange) -> None:  # noqa: C901, PLR0912 - a table of paths
        request = exchange.request
        match request.path.split("/")[1:]:
            case ["_stats"]:
                await exchange.respond(200, json.dumps(self.stats()).encode())
            case ["bytes", count]:
                await _send_bytes(exchange, int(count))
            case ["slow", seconds, count]:
                await trio.sleep(float(seconds))
                await _send_bytes(exchange, int(count))
            case ["status", code]:
                wish = request.query("retry_after")
                await exchange.respond(int(code), b"no", [("Retry-After", wish)] if wish else [])
            case ["redirect", left]:
                to = f"/redirect/{int(left) - 1}" if int(left) > 1 else "/bytes/10"
                await exchange.respond(302, b"", [("Location", to)])
            case ["hang"]:
                await exchange.end("hang")
            case ["drip", count, seconds]:
                await exchange.send(f"HTTP/1.1 200 OK\r\nContent-Length: {count}\r\n\r\n".encode())
                for _ in range(int(count)):
                    await exchange.send(b"x")
                    await trio.sleep(float(seconds))
            case ["one-byte-chunks", count]:
                start, end = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n"
                await exchange.send(start + b"1\r\nx\r\n" * int(count) + end)
            case ["flaky", failures, code, count]:
                key = request.query("key")
                self._flaky[key] += 1
                if self._flaky[key] <= int(failures):
                    await exchange.respond(int(code), b"no")
                else:
                    await _send_bytes(exchange, int(count))
            case _:
                await exchange.respond(404, b"no such path")

    def stats(self) -> dict[str, Any]:
        """What `/_stats` answers."""
        return {
            "requests": dict(self._counts),
            "peak": {key: count for key, count in self.peak.items() if key != "/_stats"},
            "current": {key: count for key, count in self.current.items() if count},
            "connections": self.connections,
        }


async def _send_bytes(exchange: Exchange, count: int) -> None:
    fields = f"Content-Type: application/octet-stream\r\nContent-Length: {count}\r\n\r\n"
    head = f"HTTP/1.1 200 OK\r\n{fields}".encode()
    sent = 0
    for block in _blocks(count, exchange.request.query("seed")):
        sent += len(block)
        if sent == count:
            exchange.over()
        await exchange.send(head + block)
        head = b""
    if head:
        exchange.over()
        await exchange.send(head)


@asynccontextmanager
async def open_origin(
    tls: ssl.SSLContext | None = None, *, port: int = 0, host: str = "127.0.0.1"
) -> AsyncIterator[Origin]:
    """A running origin on a loopback address."""
    listeners = await trio.open_tcp_listeners(port, host=host, backlog=4096)
    origin = Origin(listeners[0].socket.getsockname()[1], "http" if tls is None else "https")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, lambda stream: origin.serve(stream, tls), listeners)
        try:
            yield origin
        finally:
            nursery.cancel_scope.cancel()


async def run_process(port: int) -> None:
    """Serve the built-in paths until killed."""
    async with open_origin(port=port) as origin:
        origin.record = False
        print(origin.port, flush=True)  # noqa: T201 - the parent reads it
        await trio.sleep_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    trio.run(run_process, parser.parse_args().port)
