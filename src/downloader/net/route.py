"""`Route`: what a request needs beyond httpx's model, and how it is made from that."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx2

from downloader.net.response import Field
from downloader.net.url import Url

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
