"""The type for all URLs: of jobs, redirects, callbacks and proxies. Checks the form only, without I/O.

The addresses of a URL's host are checked when a connection is made.
"""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Literal, Self
from urllib.parse import quote, unquote_to_bytes, urljoin

import idna

from downloader.model import MAX_URL_CHARS

Use = Literal["download", "callback", "proxy", "endpoint"]
"""The purpose of a URL. An endpoint is a base URL in the configuration: the API's, or that of a server like
AWS."""

HIDDEN = "***"
"""Replaces a secret in texts."""

_MAX_HOST_CHARS = 253
"""RFC 1035, 2.3.4, without the final dot."""

_MAX_PORT = 65535

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""C0, DEL, C1, and surrogates, which no encoding can carry."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""A numeric last label makes the host an IPv4 address (WHATWG): 127.1, 2130706433, 0x7f.1, 0177.0.0.1."""
_PORT = re.compile(r"[0-9]{0,5}")

_QUOTED = re.compile(r"[^!#-;=?-\[\]_a-z~\\]")
"""Characters of a path or query that are percent-encoded; a stray `%` is not."""
_KEPT = "!#$%&'()*+,/:;=?@[\\]~"

_SCHEMES: Mapping[Use, Mapping[str, int]] = {
    "download": {"http": 80, "https": 443},
    "callback": {"http": 80, "https": 443},
    "proxy": {"http": 80, "https": 443, "socks5": 1080},
    "endpoint": {"http": 80, "https": 443},
}
"""Allowed schemes with ports."""

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

_ORIGINS = 1024
"""Size of the cache of parsed authorities; most URLs of an aggregation have the same origin."""


class UrlError(ValueError):
    """A text is not a URL, or not a URL for the given use; `str()` does not repeat the text."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        """`url_too_long`, `url_characters`, `url_malformed`, `url_scheme`, `url_userinfo`, `url_host` or
        `url_port`."""
        self.detail = detail
        """Continues a sentence that begins with the field's name: "has a port that does not exist"."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port (RFC 6454); `authority` does not count for equality."""

    scheme: str
    host: str
    """ASCII (IDNA), lower case, without brackets; an IPv4 address as four decimal numbers."""
    port: int
    authority: bytes = field(compare=False)
    """Value of `Host`: IPv6 in brackets, no port if the port is the scheme's default."""

    @property
    def url(self) -> str:
        """`scheme://host`, with any port except the scheme's default."""
        return f"{self.scheme}://{self.authority.decode()}"

    @property
    def host_port(self) -> bytes:
        """Host and port for CONNECT."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode()


@dataclass(frozen=True, slots=True)
class Url:
    """An absolute URL of valid form. The `repr` shows no user, password or query."""

    text: str = field(repr=False)
    """The given text without surrounding blanks."""
    target: bytes = field(repr=False)
    """Path and query, percent-encoded; `..` stays, because a signature may cover the dots."""
    origin: Origin
    userinfo: str = field(repr=False)
    """User and password as in the text, percent-encoded; empty without them."""

    @property
    def credentials(self) -> tuple[bytes, bytes]:
        """User and password, percent-decoded; each may be empty."""
        user, _, password = self.userinfo.partition(":")
        return unquote_to_bytes(user), unquote_to_bytes(password)

    @property
    def basic(self) -> bytes:
        """Value of an `Authorization` field with user and password (RFC 7617); empty without them."""
        return b"Basic " + base64.b64encode(b"%b:%b" % self.credentials) if self.userinfo else b""

    @property
    def requested(self) -> str:
        """The URL as requested: without user, password and fragment."""
        return f"{self.origin.url}{self.target.decode()}"

    @classmethod
    def parse(cls, text: str, use: Use = "download") -> Self:
        """Parse a URL as a browser would (WHATWG).

        Surrounding blanks are dropped. In path and query, blanks, `"<>^|{}`, backticks and characters that
        are not ASCII are percent-encoded. A backslash in the path means `/`.

        Raises:
            UrlError: more than 8192 characters, control characters, a scheme other than http and https (and
                socks5 for a proxy), a host that is neither a name nor an address, a port that does not exist
                or belongs to another protocol (allowed for an endpoint, which the operator names), a path of
                a proxy, or user, query or fragment of an endpoint.
        """
        text = text.strip(" ")
        if len(text) > MAX_URL_CHARS:
            raise UrlError("url_too_long", "has more than 8192 characters")
        if _CONTROL.search(text):
            raise UrlError("url_characters", "has control characters")
        match = _URL.fullmatch(text)
        if match is None:
            raise UrlError("url_malformed", "is not an absolute URL: https:// or the host is missing")
        scheme, authority, path, query = match.groups("")
        if use == "proxy" and (path not in ("", "/") or query):
            raise UrlError("url_malformed", "of a proxy must not have a path")
        if "\\" in path:
            path = path.replace("\\", "/")
        origin, userinfo = _authority(scheme, authority, use)
        if use == "endpoint" and ("@" in authority or "?" in text or "#" in text):
            raise UrlError("url_malformed", "has a user, a query or a fragment")
        return cls(text, _quoted((path or "/") + query), origin, userinfo)

    def join(self, location: bytes) -> Self:
        """The target of a redirect (RFC 9110, 10.2.2), checked like a download's URL.

        Bytes that are not UTF-8 are percent-encoded.

        Raises:
            UrlError: the target is not a valid URL of a download.
        """
        try:
            target = location.decode()
        except UnicodeDecodeError:
            target = quote(location, safe=bytes(range(0x80)))
        if _CONTROL.search(target):
            raise UrlError("url_characters", "has control characters")
        target, origin = target.strip(" "), self.origin
        if target.startswith("//"):
            target = f"{origin.scheme}:{target}"
        elif not _SCHEME.match(target):
            target = urljoin(f"{origin.url}{self.target.decode()}", target)
        return self.parse(target)


@lru_cache(maxsize=_ORIGINS)
def _authority(scheme: str, text: str, use: Use) -> tuple[Origin, str]:
    """The origin, and user and password as given. Raises `UrlError`."""
    scheme = scheme.lower()
    ports = _SCHEMES[use]
    if scheme not in ports:
        raise UrlError(
            "url_scheme", f"must begin with {'http, https or socks5' if use == 'proxy' else 'http or https'}"
        )
    if "\\" in text:
        raise UrlError("url_host", "has a backslash before its path")
    userinfo, _, host_port = text.rpartition("@")
    if "@" in userinfo:
        raise UrlError("url_userinfo", "has more than one @ before its path")
    host, digits = _host_and_port(host_port)
    if not _PORT.fullmatch(digits) or (digits and not 1 <= int(digits) <= _MAX_PORT):
        raise UrlError("url_port", "has a port that does not exist")
    port = int(digits) if digits else ports[scheme]
    if use != "endpoint" and port in REFUSED_PORTS:
        raise UrlError("url_port", "has the port of another protocol than HTTP")
    shown = f"[{host}]" if ":" in host else host
    netloc = shown if port == ports[scheme] else f"{shown}:{port}"
    return Origin(scheme, host, port, netloc.encode()), userinfo


def _host_and_port(text: str) -> tuple[str, str]:
    """The normalised host, and the digits of the port."""
    if text.startswith("["):
        address, bracket, port = text[1:].partition("]")
        try:
            IPv6Address(address)
        except AddressValueError:
            bracket = ""
        if not bracket or "%" in address or (port and not port.startswith(":")):
            raise UrlError("url_host", "has a malformed IPv6 address")
        return address.lower(), port[1:]
    host, _, port = text.partition(":")
    return normal_host(host), port


def normal_host(host: str) -> str:
    """Normalise a name or IPv4 address for comparison: ASCII, lower case, four decimal numbers.

    Raises:
        UrlError: the host is neither a name nor an IPv4 address.
    """
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except idna.IDNAError:
            raise UrlError("url_host", "has a malformed international host name") from None
    host = host.lower()
    if len(host) > _MAX_HOST_CHARS + host.endswith("."):
        raise UrlError("url_host", "has a host of more than 253 characters")
    labels = host.removesuffix(".").split(".")
    if not all(map(_LABEL.fullmatch, labels)):
        raise UrlError("url_host", "has no host, or a malformed one")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(socket.inet_aton(".".join(labels))))
        except OSError:
            raise UrlError("url_host", "has a malformed IPv4 address") from None
    return host


def _quoted(resource: str) -> bytes:
    return (quote(resource, safe=_KEPT) if _QUOTED.search(resource) else resource).encode("ascii")


_SHOWN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:)?//(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?")
_VALUE = re.compile(r"=[^&;]*")


def userinfo_of(url: str) -> str:
    """User and password of any text with `//`, or empty."""
    match = _SHOWN.fullmatch(url)
    return match["authority"].rpartition("@")[0] if match else ""


def parse_endpoint(text: str) -> Url:
    """Read a base URL of the configuration.

    Raises:
        ValueError: not an absolute http or https URL, or a user, a query or a fragment.
    """
    try:
        return Url.parse(text, "endpoint")
    except UrlError as error:
        raise ValueError(f"must be an absolute http or https URL: this one {error.detail}") from None


def requested_url(text: str) -> str:
    """`Url.requested` of a download's URL; empty for a text that is no valid URL."""
    try:
        return Url.parse(text).requested
    except UrlError:
        return ""


def host_of(url: object, *, with_port: bool = False) -> str:
    """The host of a download's URL; `""` for an invalid URL. `with_port` adds any port but the default."""
    try:
        origin = Url.parse(url).origin if isinstance(url, str) else None
    except UrlError:
        origin = None
    if origin is None:
        return ""
    return origin.authority.decode() if with_port else origin.host.removesuffix(".")


def local_host(host: str) -> str:
    """The address at which this machine reaches a server that listens on `host`."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - not bound


def redact_url(url: str, *, userinfo: str = "") -> str:
    """Remove user and password from a URL, and replace the values of the query and the fragment by `***`.

    The query of a presigned URL is as secret as a password; the names of the parameters are kept. The text
    need not be a valid URL; without `//` only the query is redacted. `userinfo` replaces the user and
    password, if any.
    """
    match = _SHOWN.fullmatch(url)
    scheme, authority, rest = match.group("scheme", "authority", "rest") if match else ("", "", url)
    if "@" in authority:
        host = authority.rpartition("@")[2]
        authority = f"{userinfo}@{host}" if userinfo else host
    elif not _HOST_AND_PORT.fullmatch(authority):  # the password has an unquoted "/", "?" or "#"
        authority, rest = HIDDEN, ""
    rest, hash_sign, fragment = rest.partition("#")
    path, question, query = rest.partition("?")
    if query:
        query = _VALUE.sub(f"={HIDDEN}", query) if "=" in query else HIDDEN
    start = f"{scheme or ''}//" if match else ""
    return f"{start}{authority}{path}{question}{query}{hash_sign}{HIDDEN if fragment else ''}"
