"""One HTTP/1.1 connection: ask, read the head, read the body, ask again.

h11 speaks the protocol and the egress guard's streams carry it; what is here is their meeting. httpcore2's
own connections are not used, for three reasons found with 2.16.2: bytes after the end of a response are
taken for the beginning of the next one, which fails an innocent job; a TLS failure behind a CONNECT proxy
occupies its place in the pool for good; and a failed SOCKS handshake leaves its socket open.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import h11
import httpcore2
import trio

from downloader.fetch.errors import WIRE_ERRORS, BadResponse, CutShort, FetchError, StaleConnection, explain

MAX_HEAD_BYTES = 64 * 1024
"""A response head still incomplete after this many bytes is refused; browsers allow about as much."""

MAX_INFORMATIONAL = 16
"""1xx responses before the real one. Early hints come once or twice; a thousand of them are a flood."""

READ_BYTES = 64 * 1024
"""Of one read at the start: a small file with its head comes in one."""

BULK_READ_BYTES = 256 * 1024
"""Of one read once a body has proved large."""

CRUMB_BYTES = 16
MAX_CRUMBS = 50_000
"""More chunks than this, of fewer bytes than that on average, are refused: each costs some 10 us of CPU,
so that a megabyte in chunks of one byte would take as long as ten gigabytes."""

_BREATHER = 256
"""Pieces after which others get their turn, should they all have come in one read."""

_ALL_READ = -1

_VERSION = b"HTTP/"

Field = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Head:
    """A final response up to its body."""

    status: int
    headers: Sequence[Field]
    """Names in lower case."""

    def get(self, name: bytes) -> bytes | None:
        """The first field of that (lower-case) name."""
        for field, value in self.headers:
            if field == name:
                return value
        return None

    @property
    def length(self) -> int | None:
        """The declared length of the body in bytes; h11 has checked that it is a number."""
        value = self.get(b"content-length")
        return None if value is None else int(value)


class Connection:
    """An open connection, for one request at a time.

    Owns the stream. After any exception, a cancel included, only `aclose` is of use.

    Args:
        stream: connected, with TLS on it if the origin's scheme is https.
        prefix: what goes before the path in the request line (`http://host`, for forwarding proxies).
        extra: further request headers, of the proxy.
    """

    def __init__(
        self, stream: httpcore2.AsyncNetworkStream, *, prefix: bytes = b"", extra: Sequence[Field] = ()
    ) -> None:
        self._stream = stream
        self._prefix = prefix
        self._extra = extra
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._reused = False
        self._opening = b""
        self._answered = False
        self._ended = False
        self._read_bytes = READ_BYTES
        self._length: int | None = None
        self._seen = 0
        self._pieces = 0
        self._left = 0
        """Bytes to read past h11, or `_ALL_READ`; 0 while h11 does the reading."""

    async def get(self, path: bytes, headers: Sequence[Field]) -> Head:
        """Send a GET and read the head of its response.

        Raises:
            StaleConnection: the peer had closed this kept connection; ask again on another.
            FetchError: any other reason why there is no usable response. Waits are the caller's to bound.
        """
        self._opening, self._answered, self._read_bytes = b"", False, READ_BYTES
        self._seen = self._pieces = 0
        try:
            request = self._h11.send(
                h11.Request(method=b"GET", target=self._prefix + path, headers=[*headers, *self._extra])
            )
            self._h11.send(h11.EndOfMessage())
            assert request is not None
            # A peer may answer before it has read all, and close: the answer says more.
            with suppress(httpcore2.WriteError):
                await self._stream.write(request)
            response = await self._response()
        except WIRE_ERRORS as exc:
            raise self._explain(exc) from exc
        self._answered = True
        head = Head(response.status_code, list(response.headers))
        if head.get(b"transfer-encoding") is not None and head.get(b"content-length") is not None:
            # RFC 9112, 6.3: ought to be handled as an error, as it may be an attempt at smuggling.
            raise BadResponse("response with both Content-Length and Transfer-Encoding")
        self._length = head.length
        return head

    async def read(self) -> bytes | bytearray | None:
        """The next bytes of the body as they were sent, `None` at its end.

        Raises:
            FetchError: the body does not come to its end.
        """
        try:
            if self._left:
                return await self._read_straight()
            event = await self._event()
        except WIRE_ERRORS as exc:
            raise self._explain(exc) from exc
        if not isinstance(event, h11.Data):
            return None
        self._seen += len(event.data)
        self._pieces += 1
        if self._pieces % _BREATHER == 0:
            await self._breathe()
        return event.data

    def expect_bulk(self) -> None:
        """Much more of the body is to come: read in larger pieces.

        If its length is declared, h11 is left aside, which copies every byte three times; then this
        connection has its last response.
        """
        self._read_bytes = BULK_READ_BYTES
        if self._length is not None and not self._h11.trailing_data[0]:
            self._left = self._length - self._seen

    def skip_body(self) -> None:
        """Pass over what has arrived of the body already; waits for nothing."""
        try:
            while self._h11.their_state is h11.SEND_BODY and self._h11.next_event() is not h11.NEED_DATA:
                pass
        except h11.RemoteProtocolError:
            pass  # so it will not be kept

    def recycle(self) -> bool:
        """Make ready for another request; false if this connection has had its last.

        Bytes behind the end of the response would be taken for the next one, so they end it.
        """
        state = self._h11
        if state.our_state is not h11.DONE or state.their_state is not h11.DONE or state.trailing_data[0]:
            return False
        state.start_next_cycle()
        self._reused = True
        return True

    def is_stale(self) -> bool:
        """Whether an idle connection has been closed by the peer, or said something unasked."""
        return bool(self._stream.get_extra_info("is_readable"))

    async def aclose(self) -> None:
        """Close; the socket is closed also when this is cancelled."""
        await self._stream.aclose()

    async def _response(self) -> h11.Response:
        for _ in range(MAX_INFORMATIONAL):
            event = await self._event()
            if isinstance(event, h11.Response):
                return event
        raise BadResponse("no end of informational responses")

    async def _breathe(self) -> None:
        if self._length is None and self._pieces > MAX_CRUMBS and self._seen < self._pieces * CRUMB_BYTES:
            raise BadResponse("response in chunks of a few bytes each")
        await trio.lowlevel.checkpoint()

    async def _read_straight(self) -> bytes | None:
        if self._left == _ALL_READ:
            return None
        data = await self._stream.read(min(self._left, self._read_bytes))
        if not data:
            raise CutShort("connection closed before the end of the response")
        self._left = self._left - len(data) or _ALL_READ
        return data

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value]  # mypy does not narrow h11's sentinels
            data = await self._stream.read(self._read_bytes)
            if not data:
                self._ended = True
            elif len(self._opening) < len(_VERSION):
                self._opening += data[: len(_VERSION)]
            self._h11.receive_data(data)

    def _explain(self, exc: Exception) -> FetchError:
        error = explain(exc, answered=self._answered, ended=self._ended)
        if isinstance(exc, h11.LocalProtocolError) or self._answered:
            return error
        opening = self._opening[: len(_VERSION)]
        if not opening:
            return StaleConnection(str(error)) if self._reused else error
        if not _VERSION.startswith(opening):
            return BadResponse("malformed HTTP response")
        return explain(exc, answered=True, ended=self._ended)
