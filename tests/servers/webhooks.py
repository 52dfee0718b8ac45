"""A receiver of webhooks on loopback, and a notifier that may reach the receiver."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from downloader.net import EgressPolicy, NetLimits, open_transport, tls_context
from downloader.notify import Notifier, Payload
from downloader_plugins.http import ANSWER_S, open_http
from servers.plugins import bare_host

PAYLOAD = Payload(job_id="6QEywYsd0jrKAg", aggr_id="example.org", body=b'{"success":true,"extra":"\\u00fc"}')
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(slots=True)
class Receiver:
    """A server whose every request is kept, and answered by `answer(stream)`."""

    port: int = 0
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    connections: int = 0
    answer: Callable[[trio.abc.Stream], Awaitable[None]] | bytes = OK

    def url(self, path: str = "/hook", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def serve(self, stream: trio.SocketStream, context: ssl.SSLContext | None) -> None:
        self.connections += 1
        sock = stream.socket
        wire: trio.abc.Stream = stream
        if context is not None:
            wire = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            while await self._one(wire):
                if callable(self.answer):
                    await self.answer(wire)
                    return
                await wire.send_all(self.answer)
        except trio.BrokenResourceError:
            return
        finally:
            if sock.fileno() != -1:
                sock.close()

    async def _one(self, stream: trio.abc.Stream) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(65536)
            if not more:
                return False
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (text.partition(": ") for text in fields)}
        while len(body) < int(headers.get("content-length", "0")):
            body += await stream.receive_some(65536)
        self.requests.append((line, headers, body))
        return True


@asynccontextmanager
async def receiving(context: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, partial(receiver.serve, context=context), 0, host="127.0.0.1")
        )
        receiver.port = listeners[0].socket.getsockname()[1]
        yield receiver
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def opened(
    section: Mapping[str, Any] | None = None,
    *,
    allow: tuple[str, ...] = ("127.0.0.0/8", "localhost"),
    limits: NetLimits | None = None,
    answer_s: float = ANSWER_S,
) -> AsyncIterator[Notifier]:
    policy = EgressPolicy.parse(allow, setting="egress.callbacks")
    async with (
        open_transport(policy, tls=tls_context(), limits=limits) as transport,
        open_http(section or {}, bare_host(transport=transport), answer_s=answer_s) as notifier,
    ):
        yield notifier
