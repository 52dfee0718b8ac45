"""The parser of responses: httptools (llhttp), with a fallback to curl's rules for heads.

httptools is strict. A head that it refuses is rewritten and parsed again. Like curl, this accepts a blank
before a colon, folded fields, bare LF, a repeated Content-Length, and a Content-Length beside
Transfer-Encoding.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import httptools

from downloader.net.errors import BadResponse

_VERSION = b"HTTP/1."
_MALFORMED = "malformed HTTP response"
_HEAD_END = re.compile(rb"\n\r?\n")
_CONTROLS = bytes({*range(1, 32), 127} - {*b"\t\r\n"})
_NO_CONTROLS = bytes.maketrans(_CONTROLS, b"?" * len(_CONTROLS))
"""Real origins send control characters in values and reason phrases, without meaning. NUL is kept and then
refused."""
_SWITCHING_PROTOCOLS = 101
_MIN_FINAL, _MAX_STATUS = 200, 999

Field = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Head:
    """Status and fields of a final response."""

    status: int
    fields: Sequence[Field]
    """Names and values as received."""
    length: int | None
    """Declared bytes of the body; `None` for chunks, or a body that ends with the connection."""


class Response:
    """The state of parsing a response, with the callbacks for httptools."""

    __slots__ = (
        "_bodiless",
        "_fields",
        "_head",
        "_lenient",
        "_parser",
        "_status",
        "behind",
        "body",
        "chunked",
        "done",
        "head_done",
        "keep",
        "left",
        "pieces",
        "until_close",
    )

    def __init__(self, *, bodiless: bool) -> None:
        self._bodiless = bodiless
        self._fields: list[Field] = []
        self._head = b""
        self._lenient = False
        """Whether the head is read by curl's rules, after a refusal by llhttp."""
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._status = 0
        self.head_done = False
        self.body: bytes | bytearray = b""
        """Bytes of the body received but not yet read by the caller."""
        self.left: int | None = None
        """Bytes of a body of declared length that have not been received; `None` for other bodies."""
        self.pieces = 0
        """Number of callbacks with bytes of the body: at least one per chunk."""
        self.done = False
        self.keep = False
        """Whether the peer keeps the connection open."""
        self.behind = False
        """Whether bytes have come behind the end of the response."""
        self.chunked = False
        self.until_close = False

    def feed(self, data: bytes | bytearray) -> None:
        """Parse received bytes.

        Raises:
            BadResponse: the response is malformed.
        """
        if self.head_done:
            self._parse(data)
            return
        # Kept until the head is complete, because the head may have to be parsed again.
        self._head += data
        if self._lenient:
            self._feed_leniently()
            return
        if not self._head.startswith(_VERSION) and not _VERSION.startswith(self._head):
            raise BadResponse(_MALFORMED)
        try:
            self._parse(data)
        except BadResponse:
            if self.head_done:
                raise
            self._lenient = True
            self._fields = []
            self._feed_leniently()

    def head(self) -> Head:
        """The head, once `head_done` is set.

        Raises:
            BadResponse: the end of the body is ambiguous, or the status is invalid.
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
        if not self.chunked and length is not None:
            self.left = length - len(self.body)
        return Head(self._status, self._fields, length)

    def take(self, data: bytes) -> bytes:
        """Take bytes of a body of declared length past the parser, which would only copy the bytes.

        At most `left` bytes.
        """
        assert self.left is not None
        self.left -= len(data)
        if not self.left:
            self.end()
        return data

    def end(self) -> None:
        """Note that the body has ended."""
        self.done = True
        self.drop_parser()

    def drop_parser(self) -> None:
        """Break the reference cycle with the parser."""
        self._parser = None

    def on_message_begin(self) -> None:
        """Called by the parser."""
        if self.done:
            self.behind = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        if not self.head_done:  # else a trailer, or bytes behind the end
            self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        """Called by the parser."""
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
        # llhttp has this value only during the callback.
        self.keep = self._parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        """Called by the parser."""
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
        """Called by the parser."""
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
                # llhttp's message may quote the peer, and the peer may have repeated our headers.
                raise BadResponse(_MALFORMED) from exc
            self.behind = True
        if self.done:
            self.drop_parser()

    def _feed_leniently(self) -> None:
        while not self.head_done:
            end = _HEAD_END.search(self._head)
            if end is None:
                return
            head, self._head = self._head[: end.end()], self._head[end.end() :]
            # A new parser per head: after a 1xx with `Connection: close` llhttp accepts no further bytes.
            self._parser = httptools.HttpResponseParser(self)
            self._parse(_repaired(head))
            self.keep = False
        if self._head:
            self._parse(self._head)


def _repaired(head: bytes) -> bytes:
    """Rewrite a head that curl accepts for a strict parser.

    Raises:
        BadResponse: a line is neither a field nor the continuation of a field.
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
    """Remove a repeated Content-Length, and any Content-Length beside Transfer-Encoding (RFC 9112, 6.3)."""
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
