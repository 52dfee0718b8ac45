"""HTTP/1.1: hypercorn's protocol, with strict checks of heads (RFC 9112) and bounded bodies.

If a server and a proxy disagree on where a request ends, a client can hide a request in another one (request
smuggling). h11 accepts a few such ambiguous requests; this module refuses them: it passes h11 one checked
head, then only the bytes of that request's body.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from http import HTTPStatus
from math import inf
from typing import Any

import trio
from hypercorn.events import Event, RawData
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import STREAM_ID, H2CProtocolRequiredError, H2ProtocolAssumedError, H11Protocol

from downloader.api.exchange import BodyTaken, BodyWanted, Exchange
from downloader.api.limits import PIECE_BYTES, Connection
from downloader.api.problems import Problem, Refused, bad_request

END_OF_HEAD = re.compile(rb"\r?\n\r?\n")

FEED_BYTES = 4096
"""Of a chunked body between two checkpoints: in chunks of one byte, h11 needs 15 ms for them."""

FREE_FRAMING_BYTES = 16 * 1024
"""Allowed bytes of chunk sizes, extensions and line ends: parsing a chunk costs h11 as much CPU as kilobytes
of data."""

FRAMING_SHARE = 4
"""Beyond `FREE_FRAMING_BYTES`, one more is allowed for so many bytes of data."""

HEAD_TIMEOUT = Problem(
    HTTPStatus.REQUEST_TIMEOUT,
    "request_timeout",
    detail="The request's head did not arrive in time.",
)

_HEAD_TOO_LARGE = Problem(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    "head_too_large",
    detail="The request line and headers are too large.",
)

_VERSION = Problem(
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
    "http_version",
    detail="Only HTTP/1.0, HTTP/1.1 and HTTP/2 are supported.",
)


class Http1(H11Protocol):
    """One HTTP/1.1 connection. Only its reader calls `handle`."""

    connection: Any  # h11's
    stream: Exchange | None

    def __init__(self, transport: Connection, *args: Any) -> None:
        """`args`: of `H11Protocol`."""
        super().__init__(*args)
        self.unread: float = 0
        """Bytes of the request's body that h11 has not received; infinite if unknown."""
        self._transport = transport
        self._limits = self.config.limits  # type: ignore[attr-defined]  # of our `ServerConfig`
        self._buffer = bytearray()
        """Received bytes that were not passed to h11."""
        self._chunked = False
        self._framing_bytes = 0
        self._taken = trio.Event()
        """Set when the application has read from the body."""
        self._expects_continue = False
        self._last = False
        """The connection is closed after the response."""
        self._head = b""
        """The response's head, sent together with the first piece of its body."""

    @property
    def half_head(self) -> bool:
        """A part of a head has been received."""
        return self.stream is None and bool(self._buffer) and not self._last

    async def handle(self, event: Event) -> None:
        """Handle received bytes, or that the connection is closed.

        Raises:
            H2ProtocolAssumedError, H2CProtocolRequiredError: the connection continues as HTTP/2.
        """
        if not isinstance(event, RawData):
            await super().handle(event)
            return
        self._buffer += event.data
        try:
            while self._buffer:
                if self.stream is None:
                    if self._last or not await self._take_head():
                        return
                elif self.unread and self.stream.held >= PIECE_BYTES:
                    self._taken = trio.Event()
                    await self._taken.wait()
                elif self.unread and self.stream.failure is None:
                    await self._take_body(self.stream)
                else:  # wait until the response is complete
                    await self.can_read.clear()
                    await self.can_read.wait()
        except (H2ProtocolAssumedError, H2CProtocolRequiredError) as switch:
            switch.data += bytes(self._buffer)
            raise
        except Refused as refused:
            await self.refuse(refused)

    async def end_of_stream(self) -> None:
        """The client sends no more; it may still read the response to a complete request."""
        if self.stream is not None and self.stream.ended:
            await self.stream.put({"type": "http.disconnect"})
        else:
            await self._close_stream()

    async def refuse(self, refused: Refused) -> None:
        """Refuse what was received: answer it and close, or fail the body of the running request."""
        self._buffer.clear()
        if self.stream is not None:
            self.stream.fail(refused)
            return
        self.unread = inf
        problem = refused.problem
        body = problem.body()
        headers = [*problem.headers(), (b"content-length", b"%d" % len(body))]
        await self.stream_send(Response(stream_id=STREAM_ID, headers=headers, status_code=problem.status))
        await self.send(RawData(data=self._head + body))
        await self._maybe_recycle()

    async def _take_head(self) -> bool:
        """Pass a head to h11 and begin its request; false if the head is not complete yet."""
        if self._buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: one empty line before a request is ignored
            del self._buffer[:2]
        end = END_OF_HEAD.search(self._buffer)
        size = end.end() if end else len(self._buffer)
        if size > self._limits.head_bytes:
            raise Refused(_HEAD_TOO_LARGE)
        if not end:
            return False
        head = bytes(self._buffer[:size])
        del self._buffer[:size]
        check_lines(head)
        self.connection.receive_data(head)
        await self._handle_events()
        return True

    async def _take_body(self, stream: Exchange) -> None:
        size = int(min(self.unread, len(self._buffer), FEED_BYTES if self._chunked else inf))
        before = stream.received
        self._feed(size)
        await self._handle_events()
        if self._chunked:
            self._framing_bytes += size - (stream.received - before)
            if self._framing_bytes > FREE_FRAMING_BYTES + stream.received / FRAMING_SHARE:
                raise bad_request(
                    "small_chunks", "The body's chunks are too small, or their extensions too large."
                )
            if stream.ended:
                self.unread = 0
            await trio.lowlevel.checkpoint()

    def _feed(self, size: int) -> None:
        """Pass so many bytes of the body to h11."""
        if size:
            self._expects_continue = False
            self.unread -= size
            self.connection.receive_data(bytes(self._buffer[:size]))
            del self._buffer[:size]

    async def _check_protocol(self, event: Any) -> None:
        # Any other upgrade is ignored (RFC 9110, 7.8).
        if event.method == b"PRI" or (not self.ssl and asks_for_h2c(list(event.headers))):
            await super()._check_protocol(event)

    async def _create_stream(self, request: Any) -> None:
        target, headers = check_request(request)
        names = dict(headers)
        self._chunked = b"transfer-encoding" in names
        self.unread = inf if self._chunked else int(names.get(b"content-length", 0))
        self._framing_bytes = 0
        # 100 Continue is sent when the application reads the body; it may answer without reading it.
        self._expects_continue = self.connection.they_are_waiting_for_100_continue
        self.connection.client_is_waiting_for_100_continue = False
        self.stream = Exchange(self._transport, self, STREAM_ID)
        self.keep_alive_requests += 1
        await self.stream.begin(
            version=request.http_version.decode(), method=request.method, target=target, headers=headers
        )
        if not self._chunked:  # the application then reads a small body without another wait
            self._feed(int(min(self.unread, len(self._buffer))))

    async def _send_error_response(self, status_code: int) -> None:
        # h11's text may quote the request, so it is not used.
        if status_code == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            raise Refused(_HEAD_TOO_LARGE) from None
        raise bad_request("bad_request", "This is not a well-formed HTTP/1.1 request.") from None

    async def stream_send(self, event: StreamEvent) -> None:
        """Handle an event of the exchange."""
        if isinstance(event, BodyTaken):
            self._taken.set()
        elif isinstance(event, BodyWanted):
            if self._expects_continue:
                self._expects_continue = False
                await super().stream_send(
                    Response(stream_id=STREAM_ID, headers=[], status_code=HTTPStatus.CONTINUE)
                )
        else:
            if isinstance(event, Response):
                # Close after a chunked request, whose end a proxy may see elsewhere than h11 (a bare LF in
                # the trailers), and after an incomplete one, of which bytes may still arrive.
                whole = self.stream is not None and self.stream.ended and not self._chunked
                self._last = not whole or self.context.terminated.is_set() or self._transport.reserved
                if self._last:
                    event.headers.append((b"connection", b"close"))
            await super().stream_send(event)

    async def _send_h11_event(self, event: Any) -> None:
        data = self._head + (self.connection.send(event) or b"")
        self._head = b""
        if getattr(event, "status_code", 0) >= HTTPStatus.OK:
            self._head = data  # sent with the first piece of the body
        elif data:
            await self.send(RawData(data=data))


def check_lines(head: bytes) -> None:
    """Refuse bare CR or LF and folded lines (RFC 9112, 2.2 and 5.2), which h11 accepts.

    Raises:
        Refused: with 400.
    """
    lines = head.count(b"\r\n")
    if head.count(b"\n") != lines or head.count(b"\r") != lines:
        raise bad_request("bad_request", "Lines must end in CR LF.")
    if b"\n " in head or b"\n\t" in head:
        raise bad_request("bad_request", "Folded header lines are not accepted.")


def check_request(request: Any) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Check the framing, version and target of h11's request.

    Returns:
        The target as path and query (RFC 9112, 3.2; `*` becomes `/*`, which is no route), and the headers;
        the host of an absolute target replaces the value of `Host`.

    Raises:
        Refused: with 400 or 505.
    """
    headers = list(request.headers)
    names = dict(headers)
    if request.http_version not in (b"1.1", b"1.0"):
        raise Refused(_VERSION)
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
        raise bad_request("bad_framing", "Transfer-Encoding with Content-Length or HTTP/1.0 is refused.")
    target = bytes(request.target)
    if target.startswith(b"/"):
        return target, headers
    if target == b"*" and request.method == b"OPTIONS":
        return b"/*", headers
    scheme, _, rest = target.partition(b"://")
    authority, slash, path = rest.partition(b"/")
    if scheme.lower() not in (b"http", b"https") or not authority or b"?" in authority:
        raise bad_request("bad_request", "The request target is neither a path nor an http URL.")
    headers = [(name, authority if name == b"host" else value) for name, value in headers]
    return (slash + path) or b"/", headers


def asks_for_h2c(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether the request has a well-formed upgrade to h2c."""
    upgrade = [value.strip().lower() for name, value in headers if name == b"upgrade"]
    settings = [value for name, value in headers if name == b"http2-settings"]
    if upgrade != [b"h2c"] or len(settings) != 1:
        return False
    try:
        found = base64.b64decode(settings[0] + b"=" * (-len(settings[0]) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        return False
    return len(found) % 6 == 0
