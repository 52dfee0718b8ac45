"""Requests: what they need beyond httpx's model, and what header fields may have in them."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2

from downloader.model import FIELD_NAME
from downloader.net.response import Field
from downloader.net.url import Url

FORBIDDEN_FIELDS = frozenset(
    {
        *("host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer"),
        *("upgrade", "expect", "range"),
    }
)
"""Request fields that frame or route the message, which the transport writes, and the one that makes a whole
file impossible (`Range`); lower case. So is every name that begins with `proxy-`."""

_TOKEN = re.compile(FIELD_NAME)

_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\xa0-\U0010ffff]*")
"""RFC 9110, 5.5: no control characters; characters that are not ASCII are sent as UTF-8."""

MAX_RETRY_AFTER_S = 86400.0
"""Longest delay that a peer may ask for: a day."""

_DELTA_DIGITS = 12
"""Longer numbers of seconds are not parsed, because that may take long."""


def is_token(name: str) -> bool:
    """Whether a field may have this name."""
    return _TOKEN.fullmatch(name) is not None


def is_field_value(value: str) -> bool:
    """Whether a field may have this value."""
    return _FIELD_VALUE.fullmatch(value) is not None


def is_forbidden(name: str) -> bool:
    """Whether a request's header of this name may not be set from outside."""
    lower = name.lower()
    return lower in FORBIDDEN_FIELDS or lower.startswith("proxy-")


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Seconds that a `Retry-After` field asks for: delta-seconds or an HTTP-date (RFC 9110, 10.2.3).

    Never negative, at most a day; `None` for anything else.
    """
    text = value.strip()
    if text.isascii() and text.isdigit():
        if len(text) > _DELTA_DIGITS:
            return MAX_RETRY_AFTER_S
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for an offset of many digits
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)  # "-0000", which RFC 9110 has no other meaning for
    return min(max(math.ceil((moment - now).total_seconds()), 0.0), MAX_RETRY_AFTER_S)


ROUTE = "downloader.route"
"""The key in `httpx2.Request.extensions` of the request's `Route`."""

KEEP = 8
"""Idle connections to one origin, where a request does not say how many are worth keeping."""

_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})
"""They announce a length even if there is no body (RFC 9110, 8.6)."""

Expect = Callable[[str, float], None]
"""`(what, seconds)`: from now on at most `seconds` are left for what comes next; `what` is the reason if it
does not come, such as "no response within 30 s".

For a caller with a cancel scope of its own round the request. `("", math.inf)` ends such a bound.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What a request needs beyond httpx's model; in its `extensions` under `ROUTE`.

    A request without one is a plugin's: its URL is checked as a callback's.
    """

    url: Url
    """What is asked for; the request's own URL is only its origin, since httpx2 normalises paths."""
    aggregation: str = ""
    """Connections are never shared between aggregations."""
    proxy: Url | None = None
    keep: int = KEEP
    """How many idle connections to one origin are worth keeping: as many as may be in flight."""
    answer_bytes: int | None = None
    """No more than this is read of the response, head and 1xx included; beyond it is a `BadResponse`."""
    tls: ssl.SSLContext | None = None
    """Instead of the transport's."""
    expect: Expect | None = None
    """Called before each wait. Without it httpx's read timeout bounds the head and each piece of the body."""


def build_request(method: str, route: Route, fields: Sequence[Field], content: bytes = b"") -> httpx2.Request:
    """A request for the route's URL; `Host`, framing and the URL's credentials are added.

    The credentials are used unless `fields` have an `Authorization`.
    """
    url = route.url
    headers = [(b"Host", url.origin.authority), *fields]
    if url.basic and not any(name.lower() == b"authorization" for name, _ in fields):
        headers.append((b"Authorization", url.basic))
    if content or method in _BODY_METHODS:
        headers.append((b"Content-Length", b"%d" % len(content)))
    return httpx2.Request(
        method, url.httpx, headers=headers, stream=httpx2.ByteStream(content), extensions={ROUTE: route}
    )
