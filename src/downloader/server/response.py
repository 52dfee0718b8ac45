"""HTTP/1.1 responses as bytes: the head, and whether and how the body is framed."""

from __future__ import annotations

from dataclasses import dataclass

from hypercorn.utils import suppress_body

from downloader.server.asgi import Headers
from downloader.server.parser import Head

CONTINUE = b"HTTP/1.1 100 \r\n\r\n"

LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """The head of a response, and what follows from it."""

    data: bytes
    """The head as it is sent."""
    bodiless: bool
    """No body is sent, as to HEAD."""
    chunked: bool
    """The body is sent in chunks."""
    length: int | None
    """Bytes of the body that `Content-Length` promises; `None` if there is none, or no body."""
    last: bool
    """The connection is closed after the response."""


def response_head(head: Head, status: int, headers: Headers, common: Headers, *, last: bool) -> ResponseHead:
    """The head of the response to a request.

    Args:
        head: of the request.
        status: of the response.
        headers: from the application.
        common: headers of each response.
        last: whether the connection is closed whatever the headers say.

    Raises:
        ValueError: a header has a line break, or a `Content-Length` that is no number.
    """
    lengths = [int(value) for name, value in headers if name == b"content-length"]
    bodiless = suppress_body(head.method, status)
    chunked = not lengths and not bodiless and head.version == "1.1"
    last = last or (not lengths and not bodiless and not chunked)
    fields = [b"%b: %b" % field for field in (*headers, *common)]
    if chunked:
        fields.append(b"transfer-encoding: chunked")
    if last:
        fields.append(b"connection: close")
    data = b"\r\n".join((b"HTTP/1.1 %d " % status, *fields, b"", b""))
    lines = len(fields) + 2
    if data.count(b"\r") != lines or data.count(b"\n") != lines:
        raise ValueError("a header of the response has a line break")
    length = lengths[0] if lengths and not bodiless else None
    return ResponseHead(data=data, bodiless=bodiless, chunked=chunked, length=length, last=last)
