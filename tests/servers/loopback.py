"""Small servers, sockets and a resolver for tests of connections; everything is on loopback."""

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trustme

from downloader.net import NameNotResolved, Transport
from downloader.net.stream import Stream
from downloader.phases import Phases

Handler = Callable[[trio.SocketStream], Any]


class Names:
    """A resolver with a table; the addresses of a name are returned in turn."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {name.replace("_", "."): list(turns) for name, turns in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:  # noqa: ARG002 - the protocol's
        await trio.lowlevel.checkpoint()
        self.asked.append(host)
        turns = self.answers.get(host)
        if turns is None:
            raise NameNotResolved(host, "unknown")
        return turns.pop(0) if len(turns) > 1 else turns[0]


class Changed:
    """In place of a transport's dialer: `change` gets each opened stream first."""

    def __init__(self, transport: Transport, change: Callable[[Stream], None]) -> None:
        self._inner, self._change = transport.dialer, change
        transport.dialer = self  # type: ignore[assignment] # as far as it is asked here

    async def connect(self, host: str, port: int, phases: Phases | None = None) -> Stream:
        stream = await self._inner.connect(host, port, phases)
        self._change(stream)
        return stream


@contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        sock.listen(16)
        sock.setblocking(False)
        yield sock


def nobody_came(sock: socket.socket) -> bool:
    try:
        sock.accept()[0].close()
    except BlockingIOError:
        return True
    return False


@asynccontextmanager
async def serving(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    async def closing(stream: trio.SocketStream) -> None:
        async with stream:
            await handler(stream)

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, closing, 0, host=host)
        )
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def silence(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


@contextmanager
def silent_port() -> Iterator[tuple[int, list[socket.socket]]]:
    """A port whose backlog is full, so that further SYNs stay without an answer."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        port = sock.getsockname()[1]
        held: list[socket.socket] = []
        try:
            for _ in range(16):
                filler = socket.socket()
                held.append(filler)
                filler.settimeout(0.05)
                try:
                    filler.connect(("127.0.0.1", port))
                except TimeoutError:
                    break
            else:
                pytest.skip("this kernel takes any number of connections")
            yield port, held
        finally:
            for filler in held:
                filler.close()


def server_context(issuer: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert(name).configure_cert(context)
    return context


def client_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


def over_tls(context: ssl.SSLContext) -> Handler:
    async def handler(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            async for data in tls:
                await tls.send_all(data)
        except trio.BrokenResourceError:
            return

    return handler


async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
    except trio.BrokenResourceError:
        return
