"""What the API's tests know of an API that answers on a loopback socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import httpx2
import trio
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule

from downloader.api.app import AggregationName
from downloader.api.openapi import problem_meanings
from downloader.api.routes import ROUTES
from downloader.store import JobStore

JOB: dict[str, Any] = {
    "aggr_id": "example.org",
    "aggr_limit": 4,
    "url": "https://example.org/image.png",
    "callback_type": "http",
    "callback_dst": "https://client.example/done",
}
"""The least that is accepted."""


GENERAL = frozenset(
    {
        "bad_request",
        "cross_site",
        "forbidden",
        "internal",
        "method_not_allowed",
        "misdirected_request",
        "not_found",
        "page_header",
        "store_unavailable",
        "too_large",
        "too_many_connections",
        "unauthorized",
    }
)
"""Codes of problems that any route may answer; a route declares the others."""

INPUT = frozenset({400, 422})
"""Statuses whose codes are those of a body or of its fields."""

_URLS = Map(
    [Rule(route.rule, methods=[route.method], endpoint=index) for index, route in enumerate(ROUTES)],
    converters={"aggregation": AggregationName},
    merge_slashes=False,
).bind("")


async def check_declared(response: httpx2.Response) -> None:
    """Fail for a response with a status or a problem code that the route does not declare."""
    path = unquote(response.request.url.path)
    try:
        index, _ = _URLS.match(path, response.request.method)
    except HTTPException:
        return
    route = ROUTES[index]
    status = response.status_code
    if status in route.responses or (status in INPUT and status in problem_meanings(route)):
        return
    await response.aread()
    code = response.json().get("code") if response.content else None
    assert code in {None, *GENERAL, *route.problems}, f"{route.method} {route.rule}: {status} {code}"


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
        """All that the server sends after these bytes, until the close."""
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
"""Serves the API with some dependencies changed, and with other limits."""
