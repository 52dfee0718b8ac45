"""What the API's tests know of an API that answers on a loopback socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx2
import trio

from downloader.store import JobStore

JOB: dict[str, Any] = {
    "aggr_id": "example.org",
    "aggr_limit": 4,
    "url": "https://example.org/image.png",
    "callback_type": "http",
    "callback_dst": "https://client.example/done",
}
"""The least that is accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """An API that answers."""

    port: int
    client: httpx2.AsyncClient
    store: JobStore
    stop: Callable[[], None]
    ended: trio.Event

    async def post(self, body: bytes, headers: dict[str, str] | None = None) -> httpx2.Response:
        return await self.client.post("/download", content=body, headers=headers)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def say(self, data: bytes) -> bytes:
        """Everything that the server answers to these bytes, until it closes."""
        async with await self.connect() as stream:
            await stream.send_all(data)
            return await read_to_end(stream)


async def read_to_end(stream: trio.SocketStream) -> bytes:
    answer = b""
    with trio.fail_after(10):
        while data := await stream.receive_some(65536):
            answer += data
    return answer


Serving = Callable[..., Awaitable[Served]]
"""Serves the API with some of its dependencies changed, and with other limits."""
