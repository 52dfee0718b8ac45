"""HTTP/1.1 as hypercorn serves it, over a strict reading of heads (RFC 9112) and bounded bodies.

Where servers and proxies may disagree on where a request ends, one of them can be made to see a request
that the other did not (request smuggling). h11 is lenient in a few such places, so they are refused here:
h11 is given one head that has been checked, then what belongs to its body, and no more.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import h11
import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Body, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H2CProtocolRequiredError, H2ProtocolAssumedError, H11Protocol

from downloader.api.exchange import Exchange, Shared, Transport
from downloader.api.places import PIECE_BYTES
from downloader.api.problems import Problem, Refused, bad_request

END_OF_HEAD = b"\r\n\r\n"
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"

FEED_BYTES = 4096
"""Of a chunked body between two checkpoints: at one byte a chunk, h11 takes 15 ms for as much."""

FREE_CHUNKS = 256
"""However small they are."""

CHUNK_BYTES = 32
"""Of the chunks beyond, on average: each costs h11 as much CPU as kilobytes of data."""

FREE_EXTENSION_BYTES = 16 * 1024
"""Sizes, extensions and line ends of chunks; beyond, as much as there is data."""


class Http1(H11Protocol):
    """One HTTP/1.1 connection. `handle` is called by its reader only."""

    connection: h11.Connection
    stream: Exchange | None

    def __init__(self, transport: Transport, *words: Any) -> None:
        """`words`: `H11Protocol`'s."""
        super().__init__(*words)
        self.closing = False
        """No more requests are taken; what arrives is thrown away."""
        self._shared: Shared = transport.shared
        self._transport = transport
        self._buffer = bytearray()
        """What was received and has not been given to h11."""
        self._refused = False
        self._last = False
        """The connection is closed after the answer."""
        self._head = b""
        """Of the answer, to be sent with its first piece."""
        self._left = 0
        """Bytes of a body with `Content-Length` that h11 has not been given."""
        self._chunked = False
        self._chunks = self._chunk_bytes = self._data_bytes = 0
        self._moved = trio.Event()
        """Set when the application has read of the body or the answer is complete."""

    @property
    def half_head(self) -> bool:
        """A head has begun to arrive and is not complete."""
        return self.stream is None and bool(self._buffer) and not self.closing

    async def end_of_stream(self) -> None:
        """The client sends no more; it may still read the answer to a request that is complete."""
        if self.stream is not None and self.stream.ended:
            self.closing = True
            self.stream.leave()
        else:
            await self.handle(Closed())

    @property
    def clean(self) -> bool:
        """Nothing of a request is left to be received."""
        received = self.connection.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
        return received and not self._buffer and not self._refused

    async def handle(self, event: Event) -> None:
        """Take bytes from the client, or its leaving.

        Raises:
            H2ProtocolAssumedError, H2CProtocolRequiredError: the connection goes on as HTTP/2.
        """
        if not isinstance(event, RawData):
            await super().handle(event)
            self._move()
            return
        if self.closing:
            return
        self._buffer += event.data
        try:
            while self._buffer and not self.closing:
                if self.stream is None:
                    if not await self._take_head():
                        return
                elif self.connection.their_state is h11.SEND_BODY:
                    await self._take_body(self.stream)
                else:
                    await self._wait_for_a_move()
        except Refused as refused:
            await self.refuse(refused)

    async def refuse(self, refused: Refused) -> None:
        """What was received is no request: answer so and close, or let the application of a request do it."""
        self._buffer.clear()
        self._refused = True
        if self.stream is not None:
            self.closing = True
            self.stream.fail(refused)
            return
        if self.connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            problem = refused.problem
            body = problem.body()
            headers = [*problem.headers(), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
            headers += self.config.response_headers("h11")
            data = self.connection.send(h11.Response(status_code=problem.status, headers=headers)) or b""
            await self.send(RawData(data=data + body))
        self.closing = True
        await self.send(Closed())

    async def want_body(self, _stream_id: int) -> None:
        """Tell a client that asked whether to send its body."""
        if self.connection.they_are_waiting_for_100_continue:
            go_ahead = h11.InformationalResponse(status_code=HTTPStatus.CONTINUE, headers=[])
            await self.send(RawData(data=self.connection.send(go_ahead) or b""))

    async def consumed(self, _stream_id: int, _size: int) -> None:
        """Let the reader go on."""
        self._move()

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def _wait_for_a_move(self) -> None:
        await self._moved.wait()

    async def _take_head(self) -> bool:
        """Give h11 a head and begin its request; false when it is not complete yet."""
        if self._buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: one empty line before a request is ignored
            del self._buffer[:2]
        end = self._buffer.find(END_OF_HEAD)
        if end > self._shared.limits.head_bytes or (
            end < 0 and len(self._buffer) > self._shared.limits.head_bytes
        ):
            raise Refused(HEAD_TOO_LARGE)
        if end < 0:
            check_lines(self._buffer, complete=False)
            return False
        data = bytes(self._buffer[: end + len(END_OF_HEAD)])
        if data == HTTP2_PREFACE and not self.keep_alive_requests:
            raise H2ProtocolAssumedError(bytes(self._buffer))
        del self._buffer[: len(data)]
        check_lines(data)
        self.connection.receive_data(data)
        event = self._next_event()
        if not isinstance(event, h11.Request):
            raise bad_request("bad_request", "This is not an HTTP request.")
        await self._begin(event)
        return True

    async def _begin(self, request: h11.Request) -> None:
        headers = list(request.headers)
        names = dict(headers)
        raw_path, host = check_request(request, names)
        if host is not None:
            headers = [(name, host if name == b"host" else value) for name, value in headers]
        self._chunked = b"transfer-encoding" in names
        self._chunks = self._chunk_bytes = self._data_bytes = 0
        self._left = int(names.get(b"content-length", 0))
        self._head = b""
        bodiless = not self._chunked and not self._left
        if bodiless and not self.ssl and _upgrades(headers):
            answer = h11.InformationalResponse(
                status_code=HTTPStatus.SWITCHING_PROTOCOLS,
                headers=[(b"connection", b"upgrade"), (b"upgrade", b"h2c")],
            )
            await self.send(RawData(data=self.connection.send(answer) or b""))
            raise H2CProtocolRequiredError(bytes(self._buffer), request)
        self.keep_alive_requests += 1
        if bodiless:
            self._next_event()  # the end of the message
        words = (self.app, self.config, self.context, self.task_group, self.ssl, self.client, self.server)
        self.stream = Exchange(self._transport, self, *words, self.stream_send, STREAM_ID)
        self.stream.ended = bodiless
        await self.send(Updated(idle=False))
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii"),
                raw_path=raw_path,
                state=self.connection_state,
            )
        )

    async def _take_body(self, stream: Exchange) -> None:
        if stream.held >= PIECE_BYTES:
            await self._wait_for_a_move()
            return
        size = min(FEED_BYTES, len(self._buffer)) if self._chunked else min(self._left, len(self._buffer))
        self.connection.receive_data(bytes(self._buffer[:size]))
        del self._buffer[:size]
        self._left -= size
        pieces, ended = [], False
        while not ended and isinstance(event := self._next_event(), h11.Data | h11.EndOfMessage):
            if isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
                self._chunks += event.chunk_end
            else:
                ended = True
        if self._chunked:
            self._count_chunks(size, sum(map(len, pieces)))
        if pieces:
            await stream.handle(Body(stream_id=STREAM_ID, data=b"".join(pieces)))
        if ended:
            await stream.handle(EndBody(stream_id=STREAM_ID))
        if ended and self._chunked:
            self._last = True  # see `_head_of_answer`
            self._buffer.clear()
        elif self._chunked:
            await trio.lowlevel.checkpoint()

    def _count_chunks(self, received: int, data: int) -> None:
        self._data_bytes += data
        self._chunk_bytes += received - data
        if (
            self._chunks > FREE_CHUNKS + self._data_bytes / CHUNK_BYTES
            or self._chunk_bytes > FREE_EXTENSION_BYTES + self._data_bytes + self._chunks * CHUNK_BYTES
        ):
            raise bad_request(
                "small_chunks", "The body's chunks are too small, or their extensions too large."
            )

    def _next_event(self) -> object:
        try:
            return self.connection.next_event()
        except h11.RemoteProtocolError as error:
            # Its text may quote the client and is not passed on.
            if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                raise Refused(HEAD_TOO_LARGE) from None
            raise bad_request("bad_request", "This is not a well-formed HTTP/1.1 request.") from None

    async def stream_send(self, event: StreamEvent) -> None:
        """Send what the exchange answers; a head waits for the first piece of its body."""
        if isinstance(event, Response):
            self._head = self._head_of_answer(event)
            return
        if isinstance(event, Body):
            data = self._head + (self.connection.send(h11.Data(data=event.data)) or b"")
        elif isinstance(event, EndBody):
            data = self._head + (self.connection.send(h11.EndOfMessage()) or b"")
        elif isinstance(event, StreamClosed):
            await self._maybe_recycle()
            return
        else:
            return
        self._head = b""
        if data:
            await self.send(RawData(data=data))

    def _head_of_answer(self, event: Response) -> bytes:
        # A chunked request may hide bytes that h11 reads otherwise than a proxy does (a bare LF in its
        # trailers), and an unfinished one leaves bytes behind: neither connection is used again.
        whole = (
            self.stream is not None
            and self.stream.ended
            and not self._chunked
            and self.connection.their_state not in (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)
        )
        self._last = self._last or not whole or self._shared.stopping or self._transport.reserved
        headers = [*event.headers, *self.config.response_headers("h11")]
        if self._last:
            headers.append((b"connection", b"close"))
        return self.connection.send(h11.Response(headers=headers, status_code=event.status_code)) or b""

    async def _maybe_recycle(self) -> None:
        self._head = b""
        self.stream = None
        done = self.connection.our_state is h11.DONE and self.connection.their_state is h11.DONE
        if done and not self._last and not self.closing and not self._shared.stopping:
            self.connection.start_next_cycle()
            await self.send(Updated(idle=True))
        else:
            self.closing = True
            await self.send(Closed())
        self._move()


def check_lines(data: bytes | bytearray, *, complete: bool = True) -> None:
    """Refuse bare CR or LF and folded lines (RFC 9112, 2.2 and 5.2), which h11 lets pass.

    Not `complete`: a head of which more is to come, so that a last CR may yet be followed by its LF.

    Raises:
        Refused: with 400.
    """
    lines = data.count(b"\r\n")
    returns = data.count(b"\r") - (not complete and data.endswith(b"\r"))
    if data.count(b"\n") != lines or returns != lines:
        raise bad_request("bad_request", "Lines must end in CR LF.")
    if b"\n " in data or b"\n\t" in data:
        raise bad_request("bad_request", "Folded header lines are not accepted.")


def check_request(request: h11.Request, names: dict[bytes, bytes]) -> tuple[bytes, bytes | None]:
    """Check a parsed head's framing, version and target.

    Returns:
        The target as path and query (RFC 9112, 3.2; `*` becomes `/*`, which is no route), and the host
        where it stands in the target, which then wins over the `Host` header.

    Raises:
        Refused: with 400 or 505.
    """
    if request.http_version not in (b"1.1", b"1.0"):
        raise Refused(_VERSION)
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
        raise bad_request("bad_framing", "Transfer-Encoding with Content-Length or HTTP/1.0 is refused.")
    target = bytes(request.target)
    if target.startswith(b"/"):
        return target, None
    if target == b"*" and request.method == b"OPTIONS":
        return b"/*", None
    scheme, _, rest = target.partition(b"://")
    authority, slash, path = rest.partition(b"/")
    if scheme.lower() not in (b"http", b"https") or not authority or b"?" in authority:
        raise bad_request("bad_request", "The request target is neither a path nor an http URL.")
    return (slash + path) or b"/", authority


def _upgrades(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether a request asks for h2c in proper form; any other upgrade is ignored (RFC 9110, 7.8)."""
    upgrade = [value.strip().lower() for name, value in headers if name == b"upgrade"]
    settings = [value for name, value in headers if name == b"http2-settings"]
    if upgrade != [b"h2c"] or len(settings) != 1:
        return False
    try:
        found = base64.b64decode(settings[0] + b"=" * (-len(settings[0]) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        return False
    return len(found) % 6 == 0


HEAD_TOO_LARGE = Problem(
    status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    code="head_too_large",
    detail="The request line and headers are too large.",
)

HEAD_TIMEOUT = Problem(
    status=HTTPStatus.REQUEST_TIMEOUT,
    code="request_timeout",
    detail="The request's head did not arrive in time.",
)

_VERSION = Problem(
    status=HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
    code="http_version",
    detail="Only HTTP/1.0, HTTP/1.1 and HTTP/2 are spoken here.",
)
