"""ASGI types, and functions that send a whole response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from downloader.api.limits import client_address
from downloader.api.problems import Problem

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
"""Names in lower case."""


class Gone(OSError):
    """The client has left or does not read; an `OSError`, as ASGI requires of `send`."""


def client_of(scope: Message) -> str:
    """The request's client, see `client_address`; empty if unknown."""
    client = scope["client"]
    return client_address(client[0]) if client else ""


async def send_answer(send: Send, *, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole response with its `Content-Length`.

    Raises:
        Gone: the client has left.
    """
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_problem(send: Send, problem: Problem) -> None:
    """Send a problem document; raises as `send_answer`."""
    await send_answer(send, status=problem.status, headers=problem.headers(), body=problem.body())
