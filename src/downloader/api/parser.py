"""HTTP/1.1 requests as bytes: heads and chunked bodies, parsed by httptools (llhttp in its strict mode).

If a server and a proxy disagree on where a request ends, a client can hide a request in another one (request
smuggling). So what is ambiguous is refused, also the little of it that llhttp accepts (RFC 9112).
"""

from __future__ import annotations

import base64
import binascii
import re
from http import HTTPStatus

import httptools

from downloader.api.asgi import Headers
from downloader.api.problems import Problem, Refused, bad_request

END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
"""The end of a head, also with bare LF, which `RequestHead` refuses."""

MOST_END_OF_HEAD_BYTES = 4

_REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+ HTTP/(\d\.\d)\r\n")

_FRAMING = re.compile(rb"\r\n(content-length|transfer-encoding):", re.IGNORECASE)

_CHUNKED_HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"

_VERSION = Problem(
    HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
    "http_version",
    detail="Only HTTP/1.0, HTTP/1.1 and HTTP/2 are supported.",
)


class RequestHead:
    """A checked head, from its first byte to the empty line."""

    def __init__(self, head: bytes) -> None:
        """Parse it.

        Raises:
            Refused: with 400 or 505.
        """
        line = _REQUEST_LINE.match(head)
        if line is None:
            raise _malformed()
        self.version = line[1].decode()
        if self.version not in ("1.1", "1.0"):
            raise Refused(_VERSION)
        self.headers: Headers = []
        self.target = b""
        """Path and query (RFC 9112, 3.2); `*` becomes `/*`, which is no route."""
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # what follows the head is the body all the same: any upgrade but h2c is ignored
        except httptools.HttpParserError:  # its text may quote the request, so it is not used
            framings = {name.lower() for name in _FRAMING.findall(head)}
            raise (_bad_framing() if len(framings) > 1 else _malformed()) from None
        self.method: bytes = parser.get_method()
        names = dict(self.headers)
        self.chunked = b"transfer-encoding" in names
        if self.chunked and self.version == "1.0":
            raise _bad_framing()
        # llhttp looks at the last field alone.
        if self.chunked and self._values(b"transfer-encoding") != [b"chunked"]:
            raise _malformed()
        self.length = int(names.get(b"content-length", 0))
        """Bytes of the body, if it is not chunked."""
        self.expects_continue = self.version == "1.1" and names.get(b"expect", b"").lower() == b"100-continue"
        self.keep = self.version == "1.1" and not (b"connection" in names and b"close" in self._options())
        """Whether the client keeps the connection open."""
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (not hosts and self.version == "1.1"):
            raise bad_request("bad_request", "There must be one Host header.")
        if not self.target.startswith(b"/"):
            self._resolve_target()

    def on_url(self, part: bytes) -> None:
        """Called by the parser."""
        self.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def _values(self, name: bytes) -> list[bytes]:
        return [value.lower() for found, value in self.headers if found == name]

    def _options(self) -> set[bytes]:
        """The options in `Connection`, in lower case."""
        return {option.strip(b" \t") for option in b",".join(self._values(b"connection")).split(b",")}

    def _resolve_target(self) -> None:
        """Bring a target in another form to path and query; the host of an absolute one replaces `Host`."""
        if self.target == b"*" and self.method == b"OPTIONS":
            self.target = b"/*"
            return
        scheme, _, rest = self.target.partition(b"://")
        authority, slash, path = rest.partition(b"/")
        if scheme.lower() not in (b"http", b"https") or not authority or b"?" in authority:
            raise bad_request("bad_request", "The request target is neither a path nor an http URL.")
        self.headers = [(name, authority if name == b"host" else value) for name, value in self.headers]
        self.target = (slash + path) or b"/"

    def h2c_settings(self) -> bytes | None:
        """The settings of a well-formed upgrade to h2c, as they were sent; `None` if it asks for none.

        One with a body is ignored, as RFC 9110 permits: the whole body would have to come before the answer.
        """
        settings = [value for name, value in self.headers if name == b"http2-settings"]
        if self._values(b"upgrade") != [b"h2c"] or len(settings) != 1 or self.chunked or self.length:
            return None
        # A proxy that passed the fields on without understanding them has left `Connection` out.
        if self.version == "1.0" or not {b"upgrade", b"http2-settings"} <= self._options():
            return None
        try:
            found = base64.b64decode(
                settings[0] + b"=" * (-len(settings[0]) % 4), altchars=b"-_", validate=True
            )
        except binascii.Error:
            return None
        return settings[0] if len(found) % 6 == 0 else None


class ChunkedBody:
    """Decodes a chunked body. Its parser gets no byte of the request's head, so no header can change it."""

    def __init__(self) -> None:
        self.done = False
        self._parts: list[bytes] = []
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self._parser.feed_data(_CHUNKED_HEAD)

    def feed(self, data: bytes) -> bytes:
        """The part of the body in `data`; what comes behind the end is dropped.

        Raises:
            Refused: 400.
        """
        assert self._parser is not None
        self._parts.clear()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if not self.done:
                raise _malformed() from None
        if self.done:
            self._parser = None  # breaks the circle of references
        return b"".join(self._parts)

    def on_body(self, part: bytes) -> None:
        """Called by the parser."""
        if not self.done:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        self.done = True


def _malformed() -> Refused:
    return bad_request("bad_request", "This is not a well-formed HTTP/1.1 request.")


def _bad_framing() -> Refused:
    return bad_request("bad_framing", "Transfer-Encoding with Content-Length or HTTP/1.0 is refused.")
