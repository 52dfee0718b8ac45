"""Checks against pages of other sites, which make browsers send cross-site requests and forged host names.

Cross-site requests with unsafe methods are refused. Browsers post forms to any host without a preflight, with
the content type of `curl -d`, so the content type does not tell them apart. Browsers send `Sec-Fetch-Site`,
older ones `Origin`; programs send neither. Only pages of `api.cors_origins` may read responses to `GET`.

A request for another host is refused (RFC 9110, 7.4). A page can make its own name resolve to an address of
this machine (DNS rebinding). The browser then treats the API as that page's origin, and only the `Host`
header shows the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NoReturn

from downloader.api.problems import refused
from downloader.net import Url, UrlError, host_matches
from downloader.observe import Event, get_logger
from downloader.server import Headers, Message, Send

_log = get_logger()

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_PAGE = b"x-downloader-page"

_READING = (b"GET", b"HEAD")

_PREFLIGHT_S = 600
"""Seconds for which a browser may cache the response to a preflight."""


def check_origin(headers: Mapping[bytes, bytes]) -> None:
    """Refuse a request that a browser sent for another site; names of `headers` are in lower case.

    If there is `Sec-Fetch-Site`, it must be `same-origin` or `none` (typed or bookmarked). Otherwise
    `Origin`, if there is one, must have the same host as `Host`; `null` is refused.

    Raises:
        Refused: 403, code `cross_site`.
    """
    site = headers.get(b"sec-fetch-site")
    if _is_foreign(headers) if site is None else site.lower() not in (b"same-origin", b"none"):
        _refuse("cross_site")


def check_page(headers: Mapping[bytes, bytes]) -> None:
    """Refuse a request with the cookie of a session that the web page did not send.

    It must have the header `X-Downloader-Page: 1`, which a page of another origin cannot send without a
    preflight. `Sec-Fetch-Site`, if there is one, must be `same-origin`, and `Origin` have the host of `Host`.

    Raises:
        Refused: 403, code `page_header` or `cross_site`.
    """
    if headers.get(_PAGE) != b"1":
        _refuse("page_header", field="X-Downloader-Page")
    if headers.get(b"sec-fetch-site", b"same-origin").lower() != b"same-origin" or _is_foreign(headers):
        _refuse("cross_site")


def _is_foreign(headers: Mapping[bytes, bytes]) -> bool:
    """Whether there is an `Origin` with another host than `Host`, or without one, such as `null`."""
    if (origin := headers.get(b"origin")) is None:
        return False
    host = origin.partition(b"://")[2].lower()
    return not host or host != headers.get(b"host", b"").lower()


def _refuse(code: str, **members: Any) -> NoReturn:
    _log.info(Event.API_REFUSED, reason=code)
    raise refused(code, **members)


class Cors:
    """CORS (Fetch standard) without credentials, for responses to `GET` and `HEAD`."""

    def __init__(self, origins: Iterable[str]) -> None:
        """`origins`: `api.cors_origins`; `*` allows all."""
        self._origins = frozenset(origin.encode() for origin in origins)

    def permits(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether the page that sent a request may read the response."""
        origin = headers.get(b"origin")
        return origin is not None and (b"*" in self._origins or origin in self._origins)

    def preflight(self, method: str, headers: Mapping[bytes, bytes]) -> Headers | None:
        """Headers of the response to an allowed preflight; `None` for any other request."""
        wanted = headers.get(b"access-control-request-method")
        if method != "OPTIONS" or wanted not in _READING or not self.permits(headers):
            return None
        return [
            *self._headers(headers),
            (b"access-control-allow-methods", b"GET, HEAD"),
            (b"access-control-allow-headers", b"authorization, range, if-none-match, if-range"),
            (b"access-control-max-age", b"%d" % _PREFLIGHT_S),
        ]

    def around(self, send: Send, method: str, headers: Mapping[bytes, bytes]) -> Send:
        """Wrap `send` to add the headers that let an allowed page read the response to a `GET` or `HEAD`.

        Any other page gets `Vary` only, because a cache may have the response for an allowed one.
        """
        if not self._origins or method not in ("GET", "HEAD"):
            return send
        more = self._headers(headers) if self.permits(headers) else [_VARY]

        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], *more]}
            await send(message)

        return send_with

    def _headers(self, headers: Mapping[bytes, bytes]) -> Headers:
        return [
            (b"access-control-allow-origin", headers[b"origin"]),
            (b"access-control-expose-headers", b"link, retry-after, accept-ranges, content-range, etag"),
            _VARY,
        ]


_VARY = (b"vary", b"origin")

_HOSTS = 256
"""Results that are cached; a client can send any number of names."""

CheckHost = Callable[[Headers, tuple[str, int] | None], None]
"""Called with a request's headers and the connection's local address; raises `Refused`, 421."""


def host_check(allowed: Iterable[str], *, loopback: bool) -> CheckHost:
    """The check for `api.allowed_hosts`, and for an API that listens on loopback only or not.

    The connection's own local address always passes, and on loopback also `localhost`. A request without
    `Host` passes too: browsers always send it. Without allowed hosts and without `loopback`, any host passes.
    """
    names = frozenset(allowed)
    if "*" in names or (not names and not loopback):
        return lambda _headers, _server: None

    def check(headers: Headers, server: tuple[str, int] | None) -> None:
        for name, value in headers:
            if name == b"host" and value and not passes(value, server):
                _refuse("misdirected_request")

    @lru_cache(_HOSTS)
    def passes(value: bytes, server: tuple[str, int] | None) -> bool:
        try:
            url = Url.parse(f"http://{value.decode()}", "endpoint")
        except (UrlError, UnicodeDecodeError):
            return False
        host = url.origin.host.removesuffix(".")
        return url.target == b"/" and (host_matches(host, names) or _is_own(host, server))

    return check


def _is_own(host: str, server: tuple[str, int] | None) -> bool:
    """Whether the host is the connection's local address, or `localhost` on loopback."""
    local = _address(server[0]) if server else None
    if local is None:  # a unix socket
        return False
    address = _address(host)
    if address is None:
        return local.is_loopback and (host == "localhost" or host.endswith(".localhost"))
    return address == local or (address.is_loopback and local.is_loopback)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
