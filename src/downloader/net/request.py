"""Requests: rules for header fields, and where a request goes."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from downloader.model import FIELD_NAME
from downloader.net.response import Field
from downloader.net.url import Url
from downloader.phases import Phases

FORBIDDEN_FIELDS = frozenset(
    {
        *("host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer"),
        *("upgrade", "expect", "range"),
    }
)
"""Request fields that jobs and plugins may not set, in lower case: the transport writes the fields that frame
or route a message, and `Range` would prevent a whole file. Names that begin with `proxy-` are forbidden
too."""

_TOKEN = re.compile(FIELD_NAME)

_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\U0010ffff]*")
"""RFC 9110, 5.5: no control characters; characters that are not ASCII are sent as UTF-8."""


def is_token(name: str) -> bool:
    """Whether a text is a valid field name."""
    return _TOKEN.fullmatch(name) is not None


def is_field_value(value: str) -> bool:
    """Whether a text is a valid field value."""
    return _FIELD_VALUE.fullmatch(value) is not None


def is_forbidden(name: str) -> bool:
    """Whether a request field may not be set from outside."""
    lower = name.lower()
    return lower in FORBIDDEN_FIELDS or lower.startswith("proxy-")


KEEP = 8
"""Default for `Route.keep`."""

_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})
"""Methods that announce a length even without a body (RFC 9110, 8.6)."""

Expect = Callable[[str, float], None]
"""Called with `(reason, seconds)` before a wait that may take `seconds`. `reason` describes the failure, such
as "no response within 30 s".

For a caller that bounds the request with a cancel scope. `("", math.inf)` removes the bound.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a request goes, and the bounds of the response."""

    url: Url
    aggregation: str = ""
    """Aggregations do not share connections."""
    proxy: Url | None = None
    keep: int = KEEP
    """Most idle connections to keep per origin; should equal the number of requests in flight."""
    answer_bytes: int | None = None
    """Most bytes of the response that are read, head and 1xx included; a longer response is a
    `BadResponse`."""
    response_s: float | None = None
    """Replaces `NetLimits.response_s`."""
    tls: ssl.SSLContext | None = None
    """Replaces the transport's context."""
    expect: Expect | None = None
    """Called before each wait. `None`: `response_s` bounds the head and each piece of the body."""
    phases: Phases | None = None
    """Gets the phases of the request, up to the head of the response."""


def request_fields(method: str, url: Url, fields: Sequence[Field], content: bytes) -> list[Field]:
    """All fields of a request: `Host`, framing and the URL's credentials are added.

    The credentials are used unless `fields` have an `Authorization`.
    """
    headers = [(b"Host", url.origin.authority), *fields]
    if (basic := url.basic) and not any(name.lower() == b"authorization" for name, _ in fields):
        headers.append((b"Authorization", basic))
    if content or method in _BODY_METHODS:
        headers.append((b"Content-Length", b"%d" % len(content)))
    return headers
