"""HTTP/1.1 requests as bytes: heads and chunked bodies, parsed by httptools (llhttp in strict mode).

If a server and a proxy disagree on the end of a request, a client can hide a request in another one (request
smuggling). So ambiguous requests are refused, also the few kinds that llhttp accepts (RFC 9112).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

import httptools

from downloader.server.asgi import Headers, HttpError

FEED_BYTES = 4096
"""Most bytes of a chunked body to parse in a step: in chunks of one byte, a step takes a millisecond."""

FREE_FRAMING_BYTES = 16 * 1024
"""Allowance of bytes for chunk sizes, extensions, trailers and line ends. Bounded, because a chunk costs as
much CPU as kilobytes of data."""

FRAMING_SHARE = 4
"""Bytes of data per further byte of framing, beyond `FREE_FRAMING_BYTES`."""

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
"""The end of a head, also with bare LF, which `parse_head` refuses."""

_MOST_END_OF_HEAD_BYTES = 4

_REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+ HTTP/(\d\.\d)\r\n")

_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding):", re.IGNORECASE)

_CHUNKED_HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"

_PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
"""The first bytes of a client that speaks HTTP/2 without asking (RFC 9113, 3.4)."""


_VERSIONS = "Only HTTP/1.0 and HTTP/1.1 are supported."


def bad_request(detail: str, code: str = "bad_request") -> HttpError:
    """400: the request is malformed."""
    return HttpError(HTTPStatus.BAD_REQUEST, code, detail)


class Received:
    """Received bytes that are not parsed yet."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._searched = 0
        """Bytes already searched for the blank line that ends the head."""

    def __len__(self) -> int:
        return len(self._data)

    def add(self, data: bytes | bytearray) -> None:
        """Append received bytes."""
        self._data += data

    def take(self, size: int) -> bytes:
        """Remove and return the first bytes, at most `size`."""
        data = bytes(self._data[:size])
        del self._data[:size]
        return data

    def take_head(self, limit: int) -> bytes | None:
        """Remove and return the head of a request with the blank line; `None` for an incomplete head.

        Raises:
            HttpError: 431, the head has more than `limit` bytes.
        """
        if self._data.startswith(b"\r\n"):  # RFC 9112, 2.2: an empty line before a request is ignored
            del self._data[:2]
            self._searched = 0
        # Search only new bytes, because a client may send byte by byte.
        end = _END_OF_HEAD.search(self._data, self._searched)
        self._searched = 0 if end else max(0, len(self._data) - _MOST_END_OF_HEAD_BYTES + 1)
        size = end.end() if end else len(self._data)
        if size > limit:
            raise _too_large()
        return self.take(size) if end else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The checked head of a request."""

    method: str
    target: bytes
    """Path and query (RFC 9112, 3.2); `*` becomes `/*`, which is no route."""
    version: str
    """`1.1` or `1.0`."""
    headers: Headers
    chunked: bool
    length: int
    """Bytes of the body, unless chunked."""
    keeps: bool
    """Whether the client keeps the connection open."""
    expects_continue: bool
    """Whether the client waits for `100 Continue` before sending the body."""


def parse_head(data: bytes, *, most_headers: int) -> Head:
    """Parse a head that ends with the blank line.

    An `Upgrade` is ignored (RFC 9110, 7.8).

    Raises:
        HttpError: 400, 431 or 505.
    """
    line = _REQUEST_LINE.match(data)
    if line is None:
        raise _malformed()
    version = line[1].decode()
    if data == _PREFACE:
        raise bad_request(_VERSIONS)
    if version not in ("1.1", "1.0"):
        raise HttpError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "http_version", _VERSIONS)
    fields = _parse_fields(data)
    if len(fields.headers) > most_headers:
        raise _too_large()
    named = dict(fields.headers)
    chunked = b"transfer-encoding" in named
    if chunked and version == "1.0":
        raise _bad_framing()
    # llhttp only checks the last field.
    if chunked and _values(fields.headers, b"transfer-encoding") != [b"chunked"]:
        raise _malformed()
    hosts = len(_values(fields.headers, b"host"))
    if hosts > 1 or (not hosts and version == "1.1"):
        raise bad_request("There must be one Host header.")
    target, headers = fields.target, fields.headers
    if not target.startswith(b"/"):
        target, headers = _resolve_target(fields)
    return Head(
        method=fields.method.decode(),
        target=target,
        version=version,
        headers=headers,
        chunked=chunked,
        length=int(named.get(b"content-length", 0)),
        keeps=version == "1.1" and not (b"connection" in named and b"close" in _options(headers)),
        expects_continue=version == "1.1" and named.get(b"expect", b"").lower() == b"100-continue",
    )


class _Fields:
    """Method, target and headers from the parser."""

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.headers: Headers = []

    def on_url(self, part: bytes) -> None:
        """Called by the parser."""
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers.append((name.lower(), value.rstrip(b" \t")))


def _parse_fields(data: bytes) -> _Fields:
    fields = _Fields()
    parser = httptools.HttpRequestParser(fields)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # `Upgrade` is ignored, and the next bytes are the body
    except httptools.HttpParserError:  # the error's text may quote the request
        framings = {name.lower() for name in _FRAMING.findall(data)}
        raise (_bad_framing() if len(framings) > 1 else _malformed()) from None
    fields.method = parser.get_method()
    return fields


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value.lower() for field_name, value in headers if field_name == name]


def _options(headers: Headers) -> set[bytes]:
    """The options in `Connection`, in lower case."""
    return {option.strip(b" \t") for option in b",".join(_values(headers, b"connection")).split(b",")}


def _resolve_target(fields: _Fields) -> tuple[bytes, Headers]:
    """Path and query of a target that is not a path; headers with `Host` replaced by the host of a URL."""
    if fields.target == b"*" and fields.method == b"OPTIONS":
        return b"/*", fields.headers
    scheme, _, address = fields.target.partition(b"://")
    authority, slash, path = address.partition(b"/")
    if scheme.lower() not in (b"http", b"https") or not authority or b"?" in authority:
        raise bad_request("The request target is neither a path nor an http URL.")
    headers = [(name, authority if name == b"host" else value) for name, value in fields.headers]
    return (slash + path) or b"/", headers


class ChunkedBody:
    """Decodes a chunked body, with a separate parser that no header of the request can influence."""

    def __init__(self) -> None:
        self.done = False
        self._data_bytes = 0
        self._framing_bytes = 0
        self._parts: list[bytes] = []
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._parser.feed_data(_CHUNKED_HEAD)

    def feed(self, piece: bytes) -> bytes:
        """Decode a piece of the body; bytes behind the end are dropped.

        Raises:
            HttpError: 400, malformed, or chunks so small that they cost too much.
        """
        assert self._parser is not None
        self._parts.clear()
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserError:
            if not self.done:
                raise _malformed() from None
        if self.done:
            self._parser = None  # breaks the reference cycle
        data = b"".join(self._parts)
        self._data_bytes += len(data)
        self._framing_bytes += len(piece) - len(data)
        if self._framing_bytes > FREE_FRAMING_BYTES + self._data_bytes / FRAMING_SHARE:
            detail = "The body's chunks are too small, or their extensions too large."
            raise bad_request(detail, "small_chunks")
        return data

    def on_body(self, part: bytes) -> None:
        """Called by the parser."""
        if not self.done:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.done = True


def _malformed() -> HttpError:
    return bad_request("This is not a well-formed HTTP/1.1 request.")


def _too_large() -> HttpError:
    return HttpError(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "head_too_large",
        "The request line and headers are too large, or there are too many headers.",
    )


def _bad_framing() -> HttpError:
    return bad_request("Transfer-Encoding with Content-Length or HTTP/1.0 is refused.", "bad_framing")
