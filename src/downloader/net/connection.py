"""One HTTP/1.1 connection: send a request, read the head of its response, read the body, and again.

httptools (llhttp) parses strictly. A head that it refuses is read once more by curl's rules, which accept a
blank before a colon, folded fields, bare LF, one Content-Length twice, or one beside Transfer-Encoding. After
such a response, or one with bytes behind its end, the connection is not used again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import httptools

from downloader.net.errors import BadRequest, BadResponse, ConnectionLost, CutShort
from downloader.net.fields import is_token
from downloader.net.stream import Stream, StreamBroken

MAX_HEAD_BYTES = 64 * 1024
"""A head still incomplete after this many bytes, 1xx included, is refused; browsers allow as much."""

READ_BYTES = 64 * 1024
"""Size of a read at the start; enough for a small file with its head."""

BULK_READ_BYTES = 256 * 1024
"""Size of a read after a megabyte of the body, unless the pieces are small."""

_BULK_BYTES = 1024 * 1024
_SMALL_PIECE_BYTES = 1024
"""Each piece calls back from the parser: 256 KiB in chunks of ten bytes would hold the loop up for 3 ms."""

MAX_OVERHEAD_BYTES = 256 * 1024
"""Of chunk sizes, extensions and trailers, beside half as many bytes as the content has: a megabyte in chunks
of one byte would cost as much CPU as a hundred megabytes in large ones."""

_VERSION = b"HTTP/1."
_MALFORMED = "malformed HTTP response"
_HEAD_END = re.compile(rb"\n\r?\n")
_CONTROLS = bytes({*range(1, 32), 127} - {*b"\t\r\n"})
_NO_CONTROLS = bytes.maketrans(_CONTROLS, b"?" * len(_CONTROLS))
"""Real origins send them in values and reasons, where they mean nothing. NUL stays, and is refused."""
_TARGET = re.compile(rb"[!-~]+")

_SWITCHING_PROTOCOLS = 101
_MIN_FINAL, _MAX_STATUS = 200, 999

Field = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Head:
    """A final response up to its body."""

    status: int
    fields: Sequence[Field]
    """As they came."""
    length: int | None
    """Declared bytes of the body; `None` if they come in chunks or until the close."""


class Connection:
    """An open connection, for one request at a time; owns its stream.

    After any exception, a cancel included, it can only be closed. The caller bounds its waits.

    Args:
        stream: connected, with TLS on it if the origin's scheme is https.
        prefix: what goes before the path in the request line (`http://host`, for forwarding proxies).
        extra: further request fields, for the proxy.
    """

    def __init__(self, stream: Stream, *, prefix: bytes = b"", extra: Sequence[Field] = ()) -> None:
        self.stream = stream
        self._prefix = prefix
        self._extra = extra
        self._response = _Response(bodiless=False)
        self._sent = True
        self._received = 0
        self._seen = 0
        self._limit: int | None = None

    async def request(
        self,
        method: bytes,
        target: bytes,
        fields: Sequence[Field],
        body: bytes = b"",
        *,
        limit: int | None = None,
    ) -> Head:
        """Send a request and read the head of its response.

        Args:
            method: a token.
            target: path and query, or for CONNECT host and port.
            fields: all of them, `Host` and `Content-Length` included.
            body: what they announce.
            limit: bytes of the response, head and 1xx included, beyond which nothing is read.

        Raises:
            BadRequest: this cannot be sent.
            ConnectionLost: no byte of the response came.
            CutShort: the connection ended inside the head.
            BadResponse: it is not HTTP/1.1, or out of bounds.
        """
        request = _serialised(method, self._prefix + target, fields, self._extra)
        self._received = self._seen = 0
        self._limit, self._sent = limit, False
        response = self._response = _Response(bodiless=method in (b"HEAD", b"CONNECT"))
        # A peer may answer and close before it has read all. The answer is more useful than this error.
        with suppress(StreamBroken):
            await self.stream.send(request + body)
            self._sent = True
        while not response.head_done:
            data = await self._receive()
            if not data:
                raise self._lost("closed")
            response.feed(data)
            if self._received > MAX_HEAD_BYTES and not response.head_done:
                raise BadResponse(f"response head of more than {MAX_HEAD_BYTES // 1024} KiB")
        return response.head()

    async def read(self) -> bytes | bytearray | None:
        """The next bytes of the body as they were sent, `None` at its end.

        Raises:
            CutShort: the connection ended before the body.
            BadResponse: it is malformed, or out of bounds.
        """
        response = self._response
        while not response.body:
            if response.done:
                return None
            data = await self._receive()
            if not data:
                if not response.until_close:
                    raise self._lost("closed")
                response.end()
                return None
            response.feed(data)
        data, response.body = response.body, b""
        self._seen += len(data)
        return data

    @property
    def has_more(self) -> bool:
        """Whether bytes have come behind the end of the response."""
        return self._response.behind

    @property
    def reusable(self) -> bool:
        """Whether the response is over and another request may be sent."""
        response = self._response
        return response.done and response.keep and self._sent and not response.behind

    def is_stale(self) -> bool:
        """Whether the peer of an idle connection has closed it, or sent something unasked."""
        return self.stream.is_readable()

    async def aclose(self) -> None:
        """Close; the socket is closed also when this is cancelled."""
        self._response.drop_parser()
        await self.stream.aclose()

    async def _receive(self) -> bytes | bytearray:
        bulk = self._seen >= max(_BULK_BYTES, self._response.pieces * _SMALL_PIECE_BYTES)
        most = BULK_READ_BYTES if bulk else READ_BYTES
        if self._limit is not None:
            most = min(most, self._limit - self._received)
            if most <= 0:
                raise BadResponse(f"more than {self._limit // 1024} KiB of response")
        if self._response.chunked and self._received - self._seen > MAX_OVERHEAD_BYTES + self._seen // 2:
            raise BadResponse("response in chunks of a few bytes each")
        try:
            data = await self.stream.receive(most)
        except StreamBroken as exc:
            raise self._lost("reset") from exc
        self._received += len(data)
        return data

    def _lost(self, how: str) -> ConnectionLost | CutShort:
        if self._received:
            return CutShort(f"unexpected EOF: connection {how} before the end of the response")
        return ConnectionLost(f"connection {how} without a response")


class _Response:
    """What the parser has found of one response; has the callbacks of httptools."""

    __slots__ = (
        "_bodiless",
        "_fields",
        "_head",
        "_odd",
        "_parser",
        "_status",
        "behind",
        "body",
        "chunked",
        "done",
        "head_done",
        "keep",
        "pieces",
        "until_close",
    )

    def __init__(self, *, bodiless: bool) -> None:
        self._bodiless = bodiless
        self._fields: list[Field] = []
        self._head = b""
        self._odd = False
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._status = 0
        self.head_done = False
        self.body: bytes | bytearray = b""
        """Bytes that have been received and not read."""
        self.pieces = 0
        """Number of pieces of the body so far: chunks, or parts of chunks that came in different reads."""
        self.done = False
        self.keep = False
        """Whether the peer keeps the connection."""
        self.behind = False
        self.chunked = False
        self.until_close = False

    def feed(self, data: bytes | bytearray) -> None:
        """Take in what was received.

        Raises:
            BadResponse: it is malformed.
        """
        if self.head_done:
            self._parse(data)
            return
        # Kept until the head is complete, since it may have to be read once more.
        self._head += data
        if self._odd:
            self._feed_odd()
            return
        if not self._head.startswith(_VERSION) and not _VERSION.startswith(self._head):
            raise BadResponse(_MALFORMED)
        try:
            self._parse(data)
        except BadResponse:
            if self.head_done:
                raise
            self._odd = True
            self._fields = []
            self._feed_odd()

    def head(self) -> Head:
        """The head, once it is done.

        Raises:
            BadResponse: the end of its body is ambiguous, or the status is invalid.
        """
        self._head = b""
        if not _MIN_FINAL <= self._status <= _MAX_STATUS:
            raise BadResponse(_MALFORMED)
        length: int | None = None
        for name, value in self._fields:
            if len(name) == len(b"content-length") and name.lower() == b"content-length":
                length = int(value)
            elif len(name) == len(b"transfer-encoding") and name.lower() == b"transfer-encoding":
                if self.chunked or value.lower() != b"chunked":
                    raise BadResponse(_MALFORMED)
                self.chunked = True
        self.until_close = not self.chunked and length is None
        return Head(self._status, self._fields, length)

    def end(self) -> None:
        """The connection has been closed where that is the end of the body."""
        self.done = True
        self.drop_parser()

    def drop_parser(self) -> None:
        """Break the circle of references between this and the parser."""
        self._parser = None

    # What httptools calls.

    def on_message_begin(self) -> None:
        if self.done:
            self.behind = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_done:  # else it is a trailer, or behind the end
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self.head_done:
            return
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status // 100 == 1 and status != _SWITCHING_PROTOCOLS:
            self._fields = []
            return
        self._status = status
        self.head_done = True
        self.done = self._bodiless
        # True only when asked here.
        self.keep = self._parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        self.pieces += 1
        if self.done:
            self.behind = True
        elif not self.body:
            self.body = piece
        else:
            if isinstance(self.body, bytes):
                self.body = bytearray(self.body)
            self.body += piece

    def on_message_complete(self) -> None:
        if self.head_done:
            self.done = True

    def _parse(self, data: bytes | bytearray) -> None:
        if self._parser is None:
            self.behind = True
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            if not self.done:
                # llhttp's message may quote the peer, which may repeat our own headers.
                raise BadResponse(_MALFORMED) from exc
            self.behind = True
        if self.done:
            self.drop_parser()

    def _feed_odd(self) -> None:
        while not self.head_done:
            end = _HEAD_END.search(self._head)
            if end is None:
                return
            head, self._head = self._head[: end.end()], self._head[end.end() :]
            # A new one for each head, since it would take nothing behind a 1xx with `Connection: close`.
            self._parser = httptools.HttpResponseParser(self)
            self._parse(_repaired(head))
            self.keep = False
        if self._head:
            self._parse(self._head)


def _repaired(head: bytes) -> bytes:
    """A head that curl accepts, rewritten for a strict parser.

    Raises:
        BadResponse: a line is neither a field nor part of one.
    """
    status, *lines = head.translate(_NO_CONTROLS).replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    fields: list[Field] = []
    for line in lines:
        if line[:1] in (b" ", b"\t"):  # RFC 9112, 5.2
            if not fields:
                raise BadResponse(_MALFORMED)
            name, value = fields[-1]
            fields[-1] = name, value + b" " + line.strip(b" \t")
        else:
            name, colon, value = line.partition(b":")
            if not colon:
                raise BadResponse(_MALFORMED)
            fields.append((name.rstrip(b" \t"), value.strip(b" \t")))
    return b"\r\n".join((status, *(b"%b: %b" % field for field in _one_framing(fields)), b"", b""))


def _one_framing(fields: Iterable[Field]) -> Iterable[Field]:
    """The fields with one Content-Length, and none beside Transfer-Encoding (RFC 9112, 6.3)."""
    codings: list[Field] = []
    lengths: list[Field] = []
    others: list[Field] = []
    for name, value in fields:
        match name.lower():
            case b"transfer-encoding":
                if value.lower() != b"identity":
                    codings.append((name, value))
            case b"content-length":
                lengths += [(name, part.strip(b" \t")) for part in value.split(b",")]
            case _:
                others.append((name, value))
    if codings:
        return [*others, *codings]
    if len({value for _, value in lengths}) == 1:
        return [*others, lengths[0]]
    return [*others, *lengths]


def _serialised(method: bytes, target: bytes, fields: Sequence[Field], extra: Sequence[Field]) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (method, target)]
    for name, value in (*fields, *extra):
        if not _is_token(name):
            raise BadRequest("the request cannot be sent: a header's name is malformed")
        lines.append(b"%b: %b" % (name, value))
    count = len(lines)
    lines += (b"", b"")
    request = b"\r\n".join(lines)
    if request.count(b"\r") != count + 1 or request.count(b"\n") != count + 1 or b"\0" in request:
        raise BadRequest("the request cannot be sent: a header's value is malformed")
    if not _TARGET.fullmatch(target) or not _is_token(method):
        raise BadRequest("the request cannot be sent: its URL is malformed")
    return request


@lru_cache(maxsize=1024)
def _is_token(name: bytes) -> bool:
    return is_token(name.decode("latin-1"))
