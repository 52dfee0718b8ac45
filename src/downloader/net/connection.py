"""A client's HTTP/1.1 connection: send a request, read head and body of the response, repeat.

`response` is the parser. After a malformed response, or extra bytes behind the end of a response, the
connection is not used again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache

from downloader.net.errors import BadRequest, BadResponse, ConnectionLost, CutShort
from downloader.net.request import is_token
from downloader.net.response import Field, Head, Response
from downloader.net.stream import Stream, StreamBroken

MAX_HEAD_BYTES = 64 * 1024
"""Most bytes of a head, 1xx responses included; browsers allow the same."""

READ_BYTES = 64 * 1024
"""Size of the first reads; enough for the head and a small file."""

LENGTH_READ_BYTES = 128 * 1024
"""Size of the first reads of a body of declared length, which goes past the parser."""

BULK_READ_BYTES = 256 * 1024
"""Size of a read after `_BULK_BYTES` of the body, unless the chunks are small."""

_BULK_BYTES = 1024 * 1024
_SMALL_PIECE_BYTES = 1024
"""Bulk reads are only used for chunks of at least this average size. The parser makes a Python callback per
chunk: 256 KiB in chunks of ten bytes would block the event loop for 3 ms."""

MAX_OVERHEAD_BYTES = 256 * 1024
"""Most bytes of chunk sizes, extensions and trailers, in addition to half of the content's size. A megabyte
in chunks of one byte would cost as much CPU as a hundred megabytes in large chunks."""

_TARGET = re.compile(rb"[!-~]+")


class Connection:
    """An open connection for one request at a time; owns the stream, which has TLS for https.

    After any exception, a cancel included, the connection can only be closed. The caller bounds the waits.
    For a proxy, `prefix` (`http://host`) is put before the path in the request line, and the `extra` fields
    are added. `address` is the peer's, for people.
    """

    def __init__(
        self, stream: Stream, *, prefix: bytes = b"", extra: Sequence[Field] = (), address: str = ""
    ) -> None:
        self.stream = stream
        self.address = address
        self._prefix = prefix
        self._extra = extra
        self._response = Response(bodiless=False)
        self._sent = True
        self._received = 0
        self._content = 0
        """Bytes of the body that were returned by `read`."""
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
        """Send a request and read the head of the response.

        Args:
            method: a token.
            target: path and query, or for CONNECT host and port.
            fields: all fields, including `Host` and `Content-Length`.
            body: the body that the fields announce.
            limit: most bytes of the response that are read, including the head and 1xx responses.

        Raises:
            BadRequest: the request cannot be sent.
            ConnectionLost: no byte of the response came.
            CutShort: the connection ended inside the head.
            BadResponse: the response is not HTTP/1.1, or exceeds a bound.
        """
        request = _serialised(method, self._prefix + target, fields, self._extra)
        self._received = self._content = 0
        self._limit, self._sent = limit, False
        response = self._response = Response(bodiless=method in (b"HEAD", b"CONNECT"))
        # A peer may respond and close before reading the whole request. The response is worth more than the
        # error.
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
        """The next bytes of the body, not decoded; `None` at the end.

        Raises:
            CutShort: the connection ended before the end of the body.
            BadResponse: the body is malformed, or exceeds a bound.
        """
        response = self._response
        while not response.body:
            if response.done:
                return None
            received = await self._receive()
            if not received:
                if not response.until_close:
                    raise self._lost("closed")
                response.end()
                return None
            if response.left is not None:
                response.body = response.take(received)
            else:
                response.feed(received)
        data, response.body = response.body, b""
        self._content += len(data)
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
        """Whether the peer of an idle connection has closed the connection or sent unexpected bytes."""
        return self.stream.is_readable()

    def close(self) -> None:
        """Close the connection at once."""
        self._response.drop_parser()
        self.stream.close()

    async def _receive(self) -> bytes:
        bulk = self._content >= max(_BULK_BYTES, self._response.pieces * _SMALL_PIECE_BYTES)
        most = BULK_READ_BYTES if bulk else READ_BYTES
        if self._response.left is not None:
            most = min(BULK_READ_BYTES if bulk else LENGTH_READ_BYTES, self._response.left)
        if self._limit is not None:
            most = min(most, self._limit - self._received)
            if most <= 0:
                raise BadResponse(f"more than {self._limit // 1024} KiB of response")
        overhead = self._received - self._content
        if self._response.chunked and overhead > MAX_OVERHEAD_BYTES + self._content // 2:
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
