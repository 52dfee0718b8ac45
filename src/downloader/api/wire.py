"""What a request's head must look like before anything is done with it: strict RFC 9112.

Where servers and proxies may disagree on where a request ends, one of them can be made to see a request
that the other did not (request smuggling). h11 parses leniently in a few such places, so they are
refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote

import h11

from downloader.api.problems import Problem, Refused, bad_request

END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A request line and headers that have passed every check."""

    method: str
    version: str
    path: str
    """Percent-decoded."""
    raw_path: bytes
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]
    """Names in lower case."""
    content_length: int
    chunked: bool


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


def check_request(request: h11.Request) -> Head:
    """Check a parsed head's framing, version and target.

    Raises:
        Refused: with 400 or 505.
    """
    headers = list(request.headers)
    names = dict(headers)
    if request.http_version not in (b"1.1", b"1.0"):
        raise Refused(
            Problem(
                status=HTTPStatus.HTTP_VERSION_NOT_SUPPORTED,
                code="http_version",
                detail="Only HTTP/1.1 and HTTP/1.0 are spoken here.",
            )
        )
    if b"upgrade" in names:
        raise bad_request("upgrade_refused", "No other protocol than HTTP/1.1 is spoken here.")
    chunked = b"transfer-encoding" in names
    if chunked and (b"content-length" in names or request.http_version == b"1.0"):
        raise bad_request("bad_framing", "Transfer-Encoding with Content-Length or HTTP/1.0 is refused.")
    raw_path, _, query = _origin_form(request).partition(b"?")
    path = raw_path.decode("ascii")
    return Head(
        method=request.method.decode("ascii"),
        version=request.http_version.decode("ascii"),
        path=unquote(path) if "%" in path else path,
        raw_path=raw_path,
        query=query,
        headers=headers,
        content_length=int(names.get(b"content-length", 0)),
        chunked=chunked,
    )


def _origin_form(request: h11.Request) -> bytes:
    """The target as path and query (RFC 9112, 3.2); `*` becomes `/*`, which is no route."""
    target = bytes(request.target)
    if target.startswith(b"/"):
        return target
    if target == b"*" and request.method == b"OPTIONS":
        return b"/*"
    scheme, _, rest = target.partition(b"://")
    authority, slash, path = rest.partition(b"/")
    if scheme.lower() not in (b"http", b"https") or not authority or b"?" in authority:
        raise bad_request("bad_request", "The request target is neither a path nor an http URL.")
    return (slash + path) or b"/"
