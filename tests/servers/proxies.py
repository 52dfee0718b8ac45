"""Small real proxies on loopback: HTTP (forwarding and CONNECT) and SOCKS5."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

import trio

CHUNK_BYTES = 64 * 1024


@dataclass
class Proxy:
    """A running proxy; refuses with `refuse` (a CONNECT status or a SOCKS reply code) if that is set."""

    port: int
    scheme: str
    refuse: int = 0
    silent: bool = False
    """Accept and say nothing."""
    user: bytes = b""
    """`user:password` that SOCKS5 clients have to give."""
    log: list[str] = field(default_factory=list)
    """What was asked for: `CONNECT h:p`, `GET http://h:p/...`, `socks h:p`."""
    heads: list[str] = field(default_factory=list)
    """Heads of HTTP requests as received."""

    def url(self, userinfo: str = "") -> str:
        return f"{self.scheme}://{userinfo}127.0.0.1:{self.port}"


Kind = Literal["http", "https", "socks5"]


@asynccontextmanager
async def open_proxy(kind: Kind, tls: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    """A running proxy on 127.0.0.1."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = Proxy(listeners[0].socket.getsockname()[1], kind)

    async def serve(raw: trio.SocketStream) -> None:
        stream: trio.abc.Stream = raw
        if tls is not None:
            stream = trio.SSLStream(raw, tls, server_side=True, https_compatible=True)
        try:
            if proxy.silent:
                await stream.receive_some()
                await trio.sleep_forever()
            await (_socks(proxy, stream) if kind == "socks5" else _http(proxy, stream))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError, EOFError):
            pass
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(raw)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()


async def _http(proxy: Proxy, stream: trio.abc.Stream) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some(CHUNK_BYTES)
        if not more:
            return
        data += more
    head = data.decode("latin-1")
    method, target, _ = head.split("\r\n")[0].split(" ")
    proxy.log.append(f"{method} {target}")
    proxy.heads.append(head)
    if proxy.refuse:
        await stream.send_all(f"HTTP/1.1 {proxy.refuse} X\r\nContent-Length: 0\r\n\r\n".encode())
        return
    if method == "CONNECT":
        host, _, port = target.rpartition(":")
        upstream = await trio.open_tcp_stream(host.strip("[]"), int(port))
        await stream.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
    else:
        parts = urlsplit(target)
        assert parts.hostname is not None
        upstream = await trio.open_tcp_stream(parts.hostname, parts.port or 80)
        await upstream.send_all(head.replace(target, parts.path, 1).encode("latin-1"))
    await _relay(stream, upstream)


async def _socks(proxy: Proxy, stream: trio.abc.Stream) -> None:
    _, methods = await _exactly(stream, 2)
    offered = await _exactly(stream, methods)
    wanted = 2 if proxy.user else 0
    if wanted not in offered:
        await stream.send_all(b"\x05\xff")
        return
    await stream.send_all(bytes([5, wanted]))
    if proxy.user:
        _, length = await _exactly(stream, 2)
        user = await _exactly(stream, length)
        password = await _exactly(stream, (await _exactly(stream, 1))[0])
        good = user + b":" + password == proxy.user
        await stream.send_all(b"\x01" + (b"\x00" if good else b"\x01"))
        if not good:
            return
    kind = (await _exactly(stream, 4))[3]
    if kind == 1:
        host = ".".join(str(byte) for byte in await _exactly(stream, 4))
    else:
        host = (await _exactly(stream, (await _exactly(stream, 1))[0])).decode()
    port = int.from_bytes(await _exactly(stream, 2), "big")
    proxy.log.append(f"socks {host}:{port}")
    reply = bytes([5, proxy.refuse, 0, 1, 0, 0, 0, 0, 0, 0])
    if proxy.refuse:
        await stream.send_all(reply)
        return
    upstream = await trio.open_tcp_stream(host, port)
    # Byte by byte: nobody may rely on a reply that comes in one piece.
    for byte in reply:
        await stream.send_all(bytes([byte]))
    await _relay(stream, upstream)


async def _relay(one: trio.abc.Stream, other: trio.abc.Stream) -> None:
    async def pump(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
        try:
            while data := await source.receive_some(CHUNK_BYTES):
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pump, one, other)
            nursery.start_soon(pump, other, one)
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(other)


async def _exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data
