"""The check of `Host`: a request for another host is refused (RFC 9110, 7.4).

A page can make its own name resolve to an address of this machine (DNS rebinding). The browser then treats
the API as that page's origin, and only the `Host` header shows the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address

from downloader.api.problems import Problem, Refused
from downloader.net import Url, UrlError, host_matches
from downloader.observe import Event, get_logger
from downloader.server import Headers

_log = get_logger()

_HOSTS = 256
"""Verdicts that are remembered; a client can send any number of names."""

CheckHost = Callable[[Headers, tuple[str, int] | None], None]
"""Called with a request's headers and the local address of its connection; raises `Refused`, 421."""


def host_check(allowed: Iterable[str], *, loopback: bool) -> CheckHost:
    """The check for `api.allowed_hosts`, and for an API that listens on loopback only or not.

    The connection's own local address always passes, and on loopback also `localhost`. A request without
    `Host` passes too: browsers always send it. If nothing is allowed and not `loopback`, any host passes.
    """
    names = frozenset(allowed)
    if "*" in names or (not names and not loopback):
        return lambda _headers, _server: None

    def check(headers: Headers, server: tuple[str, int] | None) -> None:
        for name, value in headers:
            if name == b"host" and value and not passes(value, server):
                _log.info(Event.API_REFUSED, reason=_MISDIRECTED.code)
                raise Refused(_MISDIRECTED)

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
    here = _address(server[0]) if server else None
    if here is None:  # a unix socket
        return False
    there = _address(host)
    if there is None:
        return here.is_loopback and (host == "localhost" or host.endswith(".localhost"))
    return there == here or (there.is_loopback and here.is_loopback)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


_MISDIRECTED = Problem(
    HTTPStatus.MISDIRECTED_REQUEST,
    "misdirected_request",
    detail="This host name is not allowed; see the setting api.allowed_hosts.",
)
