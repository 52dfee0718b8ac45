"""The types of ASGI, the server's keys in the ASGI scope, and errors and responses of applications."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from downloader.model import status_phrase
from downloader.server.limits import client_address

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
"""Names in lower case."""

STREAMED = "downloader.streamed"
"""Key in the ASGI scope, set by an application: the client may pause between two parts of the body for
`Limits.idle_s`."""

ENDLESS = "downloader.endless"
"""Key in the ASGI scope, set by an application: the response does not end before the client leaves."""

RESERVED = "downloader.reserved"
"""Key in the ASGI scope: whether the connection belongs to the reserve, which is for health checks only."""


class Gone(OSError):
    """The client has left or does not read; an `OSError`, as ASGI requires of `send`."""


class HttpError(Exception):
    """An error response with a status and an RFC 9457 problem document.

    `code` is stable, for programs; `detail` is a sentence for a person, and may change.
    """

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail

    def headers(self) -> Headers:
        """The response headers, without `Content-Length`."""
        return [(b"content-type", b"application/problem+json"), (b"x-content-type-options", b"nosniff")]

    def body(self) -> bytes:
        """The document, as UTF-8 JSON."""
        members = {
            "type": "about:blank",
            "title": status_phrase(self.status),
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        return json.dumps(members).encode()


def client_of(scope: Message) -> str:
    """The client of a request, see `client_address`; empty if unknown."""
    client = scope["client"]
    return client_address(client[0]) if client else ""


async def send_response(send: Send, *, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole response with a `Content-Length`.

    Raises:
        Gone: the client has left.
    """
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
