"""One HTTP/1.1 connection: send a request, read the head of its response, read the body, and again.

`response` parses. After an odd response, or one with bytes behind its end, the connection is not used again.
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
"""A head still incomplete after this many bytes, 1xx included, is refused; browsers allow as much."""

READ_BYTES = 64 * 1024
"""Size of a read at the start; enough for a small file with its head."""

BULK_READ_BYTES = 256 * 1024
"""Size of a read after a megabyte of the body, unless the pieces are small."""

_BULK_BYTES = 1024 * 1024
_SMALL_PIECE_BYTES = 1024
"""Each piece calls back from the parser: 256 KiB in chunks of ten bytes would hold the loop up for 3 ms."""

MAX_OVERHEAD_BYTES = 256 * 1024
"""Most bytes of chunk sizes, extensions and trailers, beside half of the content's: a megabyte in chunks of
one byte would cost as much CPU as a hundred megabytes in large ones."""

_TARGET = re.compile(rb"[!-~]+")


class Connection:
    """An open connection, for one request at a time; owns its stream, which has TLS if the origin has.

    After any exception, a cancel included, it can only be closed. The caller bounds its waits. For a proxy,
    `prefix` goes before the path in the request line (`http://host`), and `extra` fields are added.
    """

    def __init__(self, stream: Stream, *, prefix: bytes = b"", extra: Sequence[Field] = ()) -> None:
        self.stream = stream
        self._prefix = prefix
        self._extra = extra
        self._response = Response(bodiless=False)
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
        response = self._response = Response(bodiless=method in (b"HEAD", b"CONNECT"))
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
