"""HTTP/1.1: one connection, its heads and bodies bounded, and its responses.

Requests are parsed by `parser`; a chunked one is the last of its connection, since a proxy may see its end
elsewhere. HTTP/2 takes over after its preface or an upgrade to h2c.
"""

from __future__ import annotations

from http import HTTPStatus
from math import inf
from typing import Any

import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.utils import suppress_body

from downloader.api.asgi import Headers
from downloader.api.exchange import HEAD_TOO_LARGE, BodyTaken, BodyWanted, Exchange, Shared
from downloader.api.limits import ClientConnection
from downloader.api.parser import END_OF_HEAD, MOST_END_OF_HEAD_BYTES, ChunkedBody, RequestHead
from downloader.api.problems import Problem, Refused, bad_request

FEED_BYTES = 4096
"""Bytes of a chunked body between two checkpoints: in chunks of one byte they take a millisecond."""

FREE_FRAMING_BYTES = 16 * 1024
"""Allowed bytes of chunk sizes, extensions, trailers and line ends: a chunk costs as much CPU as kilobytes of
data."""

FRAMING_SHARE = 4
"""Beyond `FREE_FRAMING_BYTES`, one more is allowed for so many bytes of data."""

HEAD_TIMEOUT = Problem(
    HTTPStatus.REQUEST_TIMEOUT,
    "request_timeout",
    detail="The request's head did not arrive in time.",
)

_STREAM_ID = 1

_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
"""Begins an HTTP/2 connection (RFC 9113, 3.4)."""

_CONTINUE = b"HTTP/1.1 100 \r\n\r\n"
_SWITCHING = b"HTTP/1.1 101 \r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"


class SwitchToHttp2(Exception):
    """The connection continues as HTTP/2."""

    def __init__(self, data: bytes, headers: Headers | None = None, settings: bytes | None = None) -> None:
        """`data`: what was received of HTTP/2; the others are those of an upgraded request."""
        super().__init__()
        self.data = data
        self.headers = headers
        self.settings = settings


class Http1:
    """One HTTP/1.1 connection. Only its reader calls `handle`."""

    def __init__(self, transport: ClientConnection, shared: Shared, send: Any) -> None:
        """`send` handles hypercorn's events of a connection."""
        self.stream: Exchange | None = None
        self.unread: float = 0
        """Bytes of the request's body that were not received; infinite if unknown."""
        self._transport = transport
        self._shared = shared
        self._limits = shared.config.limits
        self._send = send
        self._buffer = bytearray()
        """Received bytes that were not parsed."""
        self._searched = 0
        """In so many of them no end of a head begins."""
        self._request: RequestHead
        self._chunks: ChunkedBody | None = None
        self._framing_bytes = 0
        self._moved = trio.Event()
        """Set when the application has read from the body, or its response is complete."""
        self._expects_continue = False
        self._last = False
        """The connection is closed after the response."""
        self._head = b""
        """The response's head, sent together with the first piece of its body."""
        self._encodes = False
        """The response is sent in chunks."""
        self._left: int | None = None
        """Bytes of the response that its `Content-Length` still promises, if it has one."""
        self._complete = False
        """The response is complete."""

    @property
    def half_head(self) -> bool:
        """A part of a head has been received."""
        return self.stream is None and bool(self._buffer) and not self._last

    async def handle(self, event: Event) -> None:
        """Handle received bytes, or that the connection is closed.

        Raises:
            SwitchToHttp2: the rest of the connection is HTTP/2.
        """
        if not isinstance(event, RawData):
            self._last = True
            self._close_stream()
            return
        self._buffer += event.data
        try:
            while self._buffer:
                stream = self.stream
                if stream is None:
                    if self._last or not await self._take_head():
                        return
                elif self.unread and stream.failure is None and stream.held < self._transport.piece_bytes:
                    await self._take_body(stream)
                else:
                    self._moved = trio.Event()
                    await self._moved.wait()
        except Refused as refused:
            await self.refuse(refused)

    async def end_of_stream(self) -> None:
        """The client sends no more: it has left, or it waits for the response to its complete request.

        Only sending the response shows which. One without an end is ended here.
        """
        if self.stream is None or not self.stream.ended or self.stream.endless:
            self._close_stream()

    async def refuse(self, refused: Refused) -> None:
        """Refuse what was received: answer it and close, or fail the body of the running request."""
        self._buffer.clear()
        if self.stream is not None:
            self.stream.fail(refused)
            return
        self.unread = inf
        problem = refused.problem
        body = problem.body()
        headers = [*problem.headers(), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        await self._send(RawData(data=self._serialised(problem.status, headers) + body))
        await self._send(Closed())

    async def _take_head(self) -> bool:
        """Parse a head and begin its request; false if the head is not complete yet.

        Raises:
            Refused: with 400, 431 or 505.
            SwitchToHttp2: it is the preface, or an upgrade.
        """
        if self._buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: one empty line before a request is ignored
            del self._buffer[:2]
            self._searched = 0
        # Only in what is new: a client may send byte by byte.
        end = END_OF_HEAD.search(self._buffer, self._searched)
        self._searched = 0 if end else max(0, len(self._buffer) - MOST_END_OF_HEAD_BYTES + 1)
        size = end.end() if end else len(self._buffer)
        if size > self._limits.head_bytes:
            raise Refused(HEAD_TOO_LARGE)
        if not end:
            return False
        if self._buffer.startswith(_PREFACE):
            raise SwitchToHttp2(bytes(self._buffer))
        request = RequestHead(bytes(self._buffer[:size]))
        del self._buffer[:size]
        settings = None if self._shared.tls else request.h2c_settings()
        if settings is not None:
            await self._send(RawData(data=_SWITCHING))
            headers = [(b":method", request.method), (b":path", request.target), *request.headers]
            raise SwitchToHttp2(bytes(self._buffer), headers, settings)
        await self._send(Updated(idle=False))
        self._begin(request)
        return True

    def _begin(self, request: RequestHead) -> None:
        self._request = request
        self._complete = False
        self._framing_bytes = 0
        # 100 Continue is sent when the application reads the body; it may answer without reading it.
        self._expects_continue = request.expects_continue and not self._buffer
        self.stream = Exchange(self._transport, self._shared, self.stream_send, _STREAM_ID)
        if request.chunked:
            self._chunks, self.unread = ChunkedBody(), inf
        else:  # the application then reads a small body without another wait
            self._chunks, self.unread = None, request.length
            if self._buffer or not request.length:
                self._take_plain(self.stream)
        self.stream.begin(
            version=request.version,
            method=request.method.decode(),
            target=request.target,
            headers=request.headers,
        )
        request.headers = []  # an idle connection need not keep them

    async def _take_body(self, stream: Exchange) -> None:
        self._expects_continue = False
        if self._chunks is None:
            self._take_plain(stream)
            return
        piece = bytes(self._buffer[:FEED_BYTES])
        del self._buffer[:FEED_BYTES]
        data = self._chunks.feed(piece)
        if self._chunks.done:
            self.unread = 0
        if data or self._chunks.done:
            stream.put({"type": "http.request", "body": data, "more_body": not self._chunks.done})
        self._framing_bytes += len(piece) - len(data)
        if self._framing_bytes > FREE_FRAMING_BYTES + stream.received / FRAMING_SHARE:
            raise bad_request(
                "small_chunks", "The body's chunks are too small, or their extensions too large."
            )
        await trio.lowlevel.checkpoint()

    def _take_plain(self, stream: Exchange) -> None:
        """Pass on what was received of a body with a known length."""
        size = int(min(self.unread, len(self._buffer)))
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        self.unread -= size
        stream.put({"type": "http.request", "body": body, "more_body": self.unread > 0})

    def _close_stream(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None
        self._moved.set()

    async def stream_send(self, event: StreamEvent) -> None:
        """Handle an event of the exchange."""
        if isinstance(event, Response):
            self._begin_response(event)
        elif isinstance(event, Body):
            await self._send_body(event.data)
        elif isinstance(event, EndBody):
            if self._left:
                raise RuntimeError("the response has fewer bytes than its Content-Length")
            await self._send_piece(b"0\r\n\r\n" if self._encodes else b"")
            self._complete = True
        elif isinstance(event, StreamClosed):
            self._close_stream()
            ends = self._last or not self._complete or self._shared.context.terminated.is_set()
            await self._send(Closed() if ends else Updated(idle=True))
        elif isinstance(event, BodyTaken):
            self._moved.set()
        elif isinstance(event, BodyWanted) and self._expects_continue:
            self._expects_continue = False
            await self._send(RawData(data=_CONTINUE))

    def _begin_response(self, event: Response) -> None:
        request, status = self._request, event.status_code
        # Close after an incomplete request too, of which bytes may still arrive.
        whole = self.stream is not None and self.stream.ended and not request.chunked
        ends = not (whole and request.keep) or self._transport.reserved
        headers = list(event.headers)
        lengths = [int(value) for name, value in headers if name == b"content-length"]
        bodiless = suppress_body(request.method.decode(), status)
        self._left = lengths[0] if lengths and not bodiless else None
        self._encodes = not lengths and not bodiless and request.version == "1.1"
        if self._encodes:
            headers.append((b"transfer-encoding", b"chunked"))
        unbounded = not lengths and not bodiless and not self._encodes
        self._last = ends or unbounded or self._shared.context.terminated.is_set()
        if self._last:
            headers.append((b"connection", b"close"))
        self._head = self._serialised(status, headers)

    def _serialised(self, status: int, headers: Headers) -> bytes:
        fields = [b"%b: %b" % field for field in (*headers, *self._shared.config.response_headers("h11"))]
        head = b"\r\n".join((b"HTTP/1.1 %d " % status, *fields, b"", b""))
        lines = len(fields) + 2
        if head.count(b"\r") != lines or head.count(b"\n") != lines:
            raise ValueError("a header of the response has a line break")
        return head

    async def _send_body(self, data: bytes) -> None:
        if self._encodes:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        elif self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise RuntimeError("the response has more bytes than its Content-Length")
        await self._send_piece(data)

    async def _send_piece(self, data: bytes) -> None:
        """Send a piece of the response, the first one behind its head."""
        data, self._head = self._head + data, b""
        if data:
            await self._send(RawData(data=data))
