"""A proxy in front of moto's SQS; a test sets how each request is answered.

Requests pass unless `on` says otherwise: moto always answers, and always the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from servers.aws import Moto


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    operation: str
    """Such as `SendMessageBatch`."""
    body: dict[str, Any]
    head: str
    """The lines as they came."""


Answer = bytes | None
Rule = Callable[[Asked], Awaitable[Answer]]
"""The whole response, or `None` for moto's."""


def response(status: int, body: bytes, *lines: str, kind: str = "application/x-amz-json-1.0") -> bytes:
    """A response as it stands on the wire."""
    head = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "Connection: close", "", ""]).encode() + body


def error(status: int, code: str, message: str = "said the proxy") -> bytes:
    """An error in SQS's form: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-making-api-requests-json.html"""
    body = {"__type": f"com.amazonaws.sqs#{code}", "message": message}
    return response(status, json.dumps(body).encode(), f"x-amzn-query-error: {code};Sender")


def always(answer: bytes) -> Rule:
    """Answer each request with this."""

    async def rule(_: Asked) -> Answer:
        await trio.lowlevel.checkpoint()
        return answer

    return rule


async def hang(_: Asked) -> Answer:
    """Never answer."""
    await trio.sleep_forever()
    raise AssertionError


async def through(_: Asked) -> Answer:
    """Answer as moto does."""
    await trio.lowlevel.checkpoint()
    return None


@dataclass
class SqsProxy:
    """The running proxy."""

    moto: Moto
    port: int = 0
    on: dict[str, Rule] = field(default_factory=dict)
    """By operation; `*` for all that have no rule of their own."""
    asked: list[Asked] = field(default_factory=list)
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self) -> Counter[str]:
        """Requests by operation."""
        return Counter(one.operation for one in self.asked)

    def batches(self) -> list[list[dict[str, Any]]]:
        """The entries of each `SendMessageBatch`."""
        return [one.body["Entries"] for one in self.asked if one.operation == "SendMessageBatch"]

    async def seen(self, operation: str, count: int = 1) -> None:
        """Wait until there were that many."""
        with trio.fail_after(20):
            while self.count()[operation] < count:
                await self._changed.wait()

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await self._serve(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def _serve(self, stream: trio.SocketStream) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some(65536)
            if not more:
                return
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (text.partition(": ") for text in fields)}
        while len(body) < int(headers.get("content-length", 0)):
            body += await stream.receive_some(65536)
        operation = headers.get("x-amz-target", "").rpartition(".")[2]
        asked = Asked(operation, json.loads(body or b"{}"), head.decode("latin-1"))
        self.asked.append(asked)
        self._changed.set()
        self._changed = trio.Event()
        answer = await self.on.get(operation, self.on.get("*", through))(asked)
        if answer is not None:
            await stream.send_all(answer)
            return
        kept = [text for text in fields if not text.lower().startswith("connection:")]
        await self._pass_on("\r\n".join([line, *kept, "Connection: close", "", ""]).encode() + body, stream)

    async def _pass_on(self, request: bytes, stream: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self.moto.port) as server:
            await server.send_all(request)
            async for chunk in server:
                await stream.send_all(chunk)


@asynccontextmanager
async def open_sqs_proxy(moto: Moto) -> AsyncIterator[SqsProxy]:
    """A running proxy."""
    proxy = SqsProxy(moto)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=256)
        proxy.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy.serve, listeners)
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
