"""The requests and responses of a connection, with ASGI's `receive` and `send`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from math import inf
from urllib.parse import unquote

import trio
from hypercorn.utils import suppress_body

from downloader.errors import first_leaf
from downloader.model import status_phrase
from downloader.observe import Event, get_logger
from downloader.server.asgi import (
    ENDLESS,
    RESERVED,
    STREAMED,
    Gone,
    Headers,
    HttpError,
    Message,
    send_response,
)
from downloader.server.connection import Connection
from downloader.server.limits import PIECE_BYTES, State
from downloader.server.parser import FEED_BYTES, ChunkedBody, Head, bad_request, parse_head

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """The head of a response, and the framing of the body."""

    data: bytes
    """The bytes of the head."""
    bodiless: bool
    """No body is sent, for example after HEAD."""
    chunked: bool
    """The body is sent in chunks."""
    length: int | None
    """The value of `Content-Length`; `None` without the header, or without a body."""
    last: bool
    """The connection is closed after the response."""


def response_head(head: Head, status: int, headers: Headers, common: Headers, *, last: bool) -> ResponseHead:
    """The head of the response to a request.

    Args:
        head: the head of the request.
        status: the status of the response.
        headers: from the application.
        common: headers of all responses.
        last: close the connection after the response, independent of the headers.

    Raises:
        ValueError: a header has a line break, or `Content-Length` is not a number.
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
    data = b"\r\n".join((_status_line(status), *fields, b"", b""))
    lines = len(fields) + 2
    if data.count(b"\r") != lines or data.count(b"\n") != lines:
        raise ValueError("a header of the response has a line break")
    length = lengths[0] if lengths and not bodiless else None
    return ResponseHead(data=data, bodiless=bodiless, chunked=chunked, length=length, last=last)


STREAMED_PIECES = 3
"""Pieces per read of a streamed body, because the application makes a round trip per read."""

_INTERNAL = HttpError(
    HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "An internal error; the service's log has it."
)

_MALFORMED = parse_head(b"GET / HTTP/1.1\r\nHost: unknown\r\nConnection: close\r\n\r\n", most_headers=2)
"""Stands for a head that is refused."""

_log = get_logger()


@lru_cache(maxsize=64)
def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {status_phrase(status)}".encode()


async def serve_requests(connection: Connection) -> None:
    """Answer the requests of a connection until no further request may follow."""
    while await _serve_request(connection):
        if connection.received:  # requests that were sent at once do not keep all other tasks waiting
            await trio.lowlevel.cancel_shielded_checkpoint()
        connection.enter(State.IDLE)


async def _serve_request(connection: Connection) -> bool:
    """Answer the next request. Returns whether a further request may follow.

    If the application raises before a byte of the response was sent, the response is the `HttpError` or a
    500. If it raises later, the response is cut off.
    """
    try:
        head = await _next_head(connection)
    except HttpError as error:
        await Exchange(connection, _MALFORMED).refuse(error)
        return False
    if head is None:
        return False
    connection.enter(State.RESPONSE)
    exchange = Exchange(connection, head)
    refusal: BaseException | None = _INTERNAL
    try:
        await connection.app(exchange.scope, exchange.receive, exchange.send)
    except* Gone:
        refusal = None
    except* HttpError as group:
        refusal = first_leaf(group)
    except* Exception:  # noqa: BLE001  an unforeseen error of a route is a 500, not an outage
        if not connection.gone:
            _log.exception(Event.API_FAILED, path=exchange.scope["path"])
    if isinstance(refusal, HttpError):
        await exchange.refuse(refusal)
    return exchange.finish()


async def _next_head(connection: Connection) -> Head | None:
    """The next head; `None` if the client sends no request.

    Raises:
        HttpError: the head is malformed, incomplete or late.
        Gone: the client has left.
    """
    limits, received = connection.config.limits, connection.received
    while (data := received.take_head(limits.head_bytes)) is None:
        if received:
            connection.begin_head()
        try:
            if await connection.read():
                continue
            error = bad_request("The request ends before its head does.")
        except trio.TooSlowError:
            detail = "The head of the request did not arrive in time."
            error = HttpError(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", detail)
        if received:
            raise error
        return None
    return parse_head(data, most_headers=limits.headers)


class Exchange:
    """A request with the response. Only one task at a time may call `receive`, and one `send`."""

    def __init__(self, connection: Connection, head: Head) -> None:
        """Begin the exchange after `connection` has received the head of the request."""
        path, _, query = head.target.partition(b"?")
        self.scope: Message = {
            "type": "http",
            "http_version": head.version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": head.method,
            "scheme": "https" if connection.secure else "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": connection.client,
            "server": connection.server,
            "extensions": {},
            RESERVED: connection.reserved,
        }
        self._connection = connection
        self._limits = connection.config.limits
        self._head = head
        self._chunks = ChunkedBody() if head.chunked else None
        self._unread: float = inf if head.chunked else head.length
        """Bytes of the body that the application has not read; infinite if unknown."""
        self._delivered = False
        """The application has received the last part of the body."""
        self._body_s = self._limits.body_grace_s
        """Remaining seconds for the next part of the body."""
        self._continue = head.expects_continue and not connection.received
        """`100 Continue` is still to be sent, when the application reads the body."""
        self._response: ResponseHead | None = None
        self._sent_bytes = 0
        """Bytes of the response's body that were sent."""
        self._begun = False
        """Bytes of the response may have been sent."""
        self._complete = False
        """The whole response has been sent."""

    async def receive(self) -> Message:
        """The next received part of the body; after the body's end, wait for the client's disconnect.

        A cancel may lose received bytes, so do not call this again after a cancel.

        Raises:
            HttpError: the body is malformed (400) or does not arrive (408).
        """
        try:
            while not self._delivered:
                body = await self._take_body()
                if body or not self._unread:
                    self._delivered = not self._unread
                    return {"type": "http.request", "body": body, "more_body": not self._delivered}
                await self._read_body()
            await self._wait_for_leaving()
        except HttpError:
            if self._begun and STREAMED not in self.scope:
                await trio.sleep_forever()  # the response goes on
            raise
        except Gone:
            pass
        return {"type": "http.disconnect"}

    async def _take_body(self) -> bytes:
        """Take the received part of the body."""
        received, chunks = self._connection.received, self._chunks
        if chunks is None:
            body = received.take(min(int(self._unread), len(received)))
            self._unread -= len(body)
        else:
            parts = []
            while received and not chunks.done:
                parts.append(chunks.feed(received.take(FEED_BYTES)))
                await trio.lowlevel.checkpoint()
            body = b"".join(parts)
            self._unread = 0 if chunks.done else inf
        self._body_s += len(body) / self._limits.body_rate
        return body

    async def _read_body(self) -> None:
        """Wait for more of the body.

        Raises:
            HttpError: nothing arrives in time, or the client has ended sending.
            Gone: the client has left.
        """
        connection = self._connection
        if self._continue:
            self._continue = False
            async with connection.send_lock:
                if not self._begun:
                    await connection.send(CONTINUE)
        self._body_s = min(self._body_s, self._limits.body_grace_s)
        begun = trio.current_time()
        streamed = STREAMED in self.scope
        connection.enter(State.BODY, self._limits.idle_s if streamed else self._body_s)
        try:
            if not await connection.read(STREAMED_PIECES if streamed else 1):
                raise bad_request("The request ends before its body does.")
        except trio.TooSlowError:
            detail = "The body of the request did not arrive in time."
            raise HttpError(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", detail) from None
        finally:
            connection.enter(State.RESPONSE)
        self._body_s -= trio.current_time() - begun

    async def _wait_for_leaving(self) -> None:
        """Wait until the client has left, or the response is complete.

        A client that has ended sending may still wait for the response.
        """
        if self._complete:
            return
        connection = self._connection
        # Few bytes of a next request are received here, because nobody reads them yet.
        while len(connection.received) < (PIECE_BYTES if ENDLESS in self.scope else 1):
            if not await connection.read():
                break
        if ENDLESS not in self.scope:
            await trio.sleep_forever()

    async def send(self, message: Message) -> None:
        """Send a message of the application, a long body in pieces.

        Raises:
            Gone: the client has left or does not read.
            RuntimeError: the message is out of order, or the body differs in length from `Content-Length`.
            ValueError: a header has a line break.
        """
        response = self._response
        if self._connection.gone or self._complete:
            raise Gone
        if message["type"] == "http.response.start" and response is None:
            self._response = self._start(message)
        elif message["type"] == "http.response.body" and response is not None:
            more = message.get("more_body", False)
            body = b"" if response.bodiless else message.get("body", b"")
            self._sent_bytes += len(body)
            missing = 0 if response.length is None else response.length - self._sent_bytes
            if missing < 0 or (missing and not more):
                raise RuntimeError("the body of the response is not as long as its Content-Length")
            last = max(len(body) - 1, 0) // PIECE_BYTES * PIECE_BYTES
            for start in range(0, last, PIECE_BYTES):
                await self._send_piece(response, body[start : start + PIECE_BYTES])
            await self._send_piece(response, body[last:], ends=not more)
            self._complete = not more
        else:
            raise RuntimeError(f"unexpected {message['type']}")

    def _start(self, message: Message) -> ResponseHead:
        connection, head = self._connection, self._head
        # No request follows an incomplete request, because bytes of it may still arrive, nor a chunked
        # request, because a proxy may see the end of it elsewhere.
        has_end = self._unread <= len(connection.received) and self._chunks is None
        last = not (has_end and head.keeps) or connection.reserved or connection.context.terminated.is_set()
        common = connection.config.response_headers()
        return response_head(head, message["status"], message["headers"], common, last=last)

    async def _send_piece(self, response: ResponseHead, data: bytes, *, ends: bool = False) -> None:
        """Send a piece of the body; the first piece is sent together with the head."""
        if response.chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if response.chunked and ends:
            data += LAST_CHUNK
        if self._connection.send_lock.locked():  # `100 Continue` is being sent
            async with self._connection.send_lock:
                pass
        await trio.lowlevel.checkpoint_if_cancelled()  # before the first byte `refuse` can still respond
        if not self._begun and (data or ends):
            self._begun, data = True, response.data + data
        if data:
            await self._connection.send(data)

    async def refuse(self, error: HttpError) -> None:
        """Send an error response, unless bytes of a response have been sent."""
        if not self._begun:
            self._response, self._sent_bytes = None, 0
            with suppress(Gone):
                await send_response(
                    self.send, status=error.status, headers=error.headers(), body=error.body()
                )

    def finish(self) -> bool:
        """Discard the rest of the request after the end of the application.

        Returns:
            Whether a further request may follow.
        """
        connection, response = self._connection, self._response
        if not self._complete or response is None or response.last or connection.context.terminated.is_set():
            return False
        connection.received.take(int(self._unread))
        return True
