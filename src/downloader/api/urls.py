"""Which URLs a job may name: form only. What they resolve to is judged where the connection is made."""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Literal

import httpx2
from pydantic_core import PydanticCustomError

MAX_URL_CHARS = 8192
"""What servers commonly accept as a request line; presigned URLs have up to 2,000."""

_MAX_HOST_CHARS = 253
"""RFC 1035, 2.3.4, without the final dot."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)(.*)")
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_IPV4 = re.compile(r"[0-9]+(\.[0-9]+){3}")
_PORT = re.compile(r"[0-9]{0,5}")

REFUSED_PORTS = frozenset(
    {
        # Other protocols' ports, which an HTTP request must not be made to talk to: the Fetch standard's
        # bad ports (https://fetch.spec.whatwg.org/#port-blocking) ...
        *(0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102),
        *(103, 104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465),
        *(512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993),
        *(995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668),
        *(6669, 6679, 6697, 10080),
        # ... and SMB, SQL Server, Oracle, MySQL, RDP, PostgreSQL, VNC, Redis, Cassandra, memcached, MongoDB.
        *(445, 1433, 1521, 3306, 3389, 5432, 5900, 6379, 6380, 9042, 11211, 27017),
    }
)

_HTTP = frozenset({"http", "https"})
_PROXY = frozenset({"http", "https", "socks5"})

Use = Literal["download", "callback", "proxy"]


def check_url(url: str, use: Use) -> str:
    """The URL as given, when its form is fit for the use.

    Absolute, http or https (a proxy's may be socks5), at most 8192 characters, none of them blank,
    control or invisible; a host of at most 253 characters that is a name or an address; a port from 1 to
    65535 that is no other protocol's. A user and password may stand in a callback's and a proxy's URL
    (they are sent as Basic authentication), not in a download's.

    Raises:
        PydanticCustomError: with one of the codes `url_too_long`, `url_characters`, `url_malformed`,
            `url_scheme`, `url_userinfo`, `url_host`, `url_port`.
    """
    if len(url) > MAX_URL_CHARS:
        raise PydanticCustomError("url_too_long", "has more than 8192 characters")
    if not url.isprintable() or " " in url:
        raise PydanticCustomError("url_characters", "has blanks, control or invisible characters")
    match = _URL.fullmatch(url)
    if match is None:
        raise PydanticCustomError("url_malformed", "is not an absolute URL")
    scheme, authority, path, _ = match.groups()
    if scheme.lower() not in (_PROXY if use == "proxy" else _HTTP):
        expected = "http, https or socks5" if use == "proxy" else "http or https"
        raise PydanticCustomError("url_scheme", "must begin with {expected}", {"expected": expected})
    if "\\" in authority:
        raise PydanticCustomError("url_host", "has a backslash before its path")
    userinfo, at, host_port = authority.rpartition("@")
    if at and (use == "download" or "@" in userinfo):
        raise PydanticCustomError(
            "url_userinfo", "must not hold user or password; send request_headers with Authorization"
        )
    if use == "proxy" and path not in ("", "/"):
        raise PydanticCustomError("url_malformed", "of a proxy must not have a path")
    _check_port(_check_host(host_port), any_port=use == "proxy")
    return url


def _check_host(host_port: str) -> str:
    """Check the host, answer the port's digits."""
    if host_port.startswith("["):
        address, bracket, rest = host_port[1:].partition("]")
        try:
            IPv6Address(address)
        except AddressValueError:
            bracket = ""
        if not bracket or "%" in address or (rest and not rest.startswith(":")):
            raise PydanticCustomError("url_host", "has a malformed IPv6 address")
        return rest[1:]
    host, _, port = host_port.partition(":")
    if not host.isascii():
        try:
            host = httpx2.URL(f"http://{host}/").raw_host.decode("ascii")  # as it will be when it is fetched
        except httpx2.InvalidURL:
            raise PydanticCustomError("url_host", "has a malformed international host name") from None
    if len(host) > _MAX_HOST_CHARS + host.endswith("."):
        raise PydanticCustomError("url_host", "has a host of more than 253 characters")
    if _IPV4.fullmatch(host):
        try:
            IPv4Address(host)
        except AddressValueError:
            raise PydanticCustomError("url_host", "has a malformed IPv4 address") from None
    if not all(map(_LABEL.fullmatch, host.removesuffix(".").split("."))):
        raise PydanticCustomError("url_host", "has no host, or a malformed one")
    return port


def _check_port(port: str, *, any_port: bool) -> None:
    if not _PORT.fullmatch(port) or (port and not 1 <= int(port) <= 65535):  # noqa: PLR2004  16 bits
        raise PydanticCustomError("url_port", "has a port that does not exist")
    if port and not any_port and int(port) in REFUSED_PORTS:
        raise PydanticCustomError("url_port", "has the port of another protocol than HTTP")
