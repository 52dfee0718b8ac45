"""What to ask whom: targets, redirects and request headers. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypedDict
from urllib.parse import quote, unquote_to_bytes

import httpx2

from downloader.fetch.errors import BadResponse, RedirectRefused

HeaderMap = dict[bytes, tuple[bytes, bytes]]
"""Lower-case name to `(name, value)` as they are sent."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})
"""Statuses that send us elsewhere; all keep the method, as it is GET (RFC 9110, 15.4)."""

_PORTS = {"http": 80, "https": 443}

_RESOURCE = re.compile(r"([^:/?#]+://[^/?#]*)([^?#]*)(\?[^#]*)?")
_KEPT_IN_PATH = "!$%&'()*+,/:;=@[\\]^|"
_KEPT_IN_QUERY = f"{_KEPT_IN_PATH}?`{{}}"
"""Characters that are not quoted, besides letters, digits and `-._~`; a lone `%` is among them."""

_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_PORT_END = 65536

_KEPT_ABROAD = frozenset({b"accept", b"accept-encoding", b"user-agent"})
"""Headers that another origin may see: none of them is a secret or means anything to one origin only."""

_OURS = frozenset(
    {
        b"host",
        b"connection",
        b"content-length",
        b"expect",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that frame or route the message: ours alone, whatever a job or the configuration says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One hop's resource."""

    url: str
    """The whole, against which a redirect is resolved."""
    scheme: str
    """`http` or `https`."""
    host: str
    """ASCII (IDNA), without brackets."""
    port: int
    authority: bytes
    """For `Host` and proxies: brackets round IPv6, the port unless it is the scheme's own."""
    path: bytes
    """Path and query, quoted."""
    basic: bytes
    """`Authorization` made of the URL's userinfo, or empty."""

    @property
    def origin(self) -> tuple[str, str, int]:
        """RFC 6454."""
        return self.scheme, self.host, self.port


def parse_target(text: str) -> Target:
    """The resource that an absolute URL names; its path and query are asked for as they are written.

    Only what cannot stand in a URL is quoted. `..` stays: it may be part of an object's name and signature.

    Raises:
        BadResponse: it is no http or https URL; the API refuses such jobs, so this is for later finds.
    """
    match = _RESOURCE.match(text)
    if match is None:
        raise BadResponse("not an absolute URL")
    before, path, query = match.groups("")
    try:
        origin = _origin(before)
        # As httpx2 quotes them, which leads `..` and `.` out of the path too.
        resource = quote(path or "/", safe=_KEPT_IN_PATH) + quote(query, safe=_KEPT_IN_QUERY)
    except (httpx2.InvalidURL, ValueError) as exc:
        raise BadResponse("not a valid http or https URL") from exc
    return Target(url=text, path=resource.encode("ascii"), **origin)


def redirect_target(target: Target, location: bytes | None) -> Target:
    """Where a redirect leads.

    Raises:
        RedirectRefused: nowhere, to something that is no http or https URL, or from https to http.
    """
    if not location:
        raise RedirectRefused("redirect without a location")
    try:
        url = httpx2.URL(target.url).join(_decode(location))
        following = Target(url=str(url), path=url.raw_path, **_origin_of(url))
    except (httpx2.InvalidURL, ValueError) as exc:
        raise RedirectRefused("redirect to something that is not an http or https URL") from exc
    if target.scheme == "https" and following.scheme == "http":
        raise RedirectRefused("redirect from https to http")
    return following


def base_headers(configured: Mapping[str, str]) -> HeaderMap:
    """The configured request headers, encoded, with `Accept-Encoding: identity` unless they say otherwise."""
    headers: HeaderMap = {b"accept-encoding": (b"Accept-Encoding", b"identity")}
    _merge(headers, configured)
    return headers


def job_headers(base: HeaderMap, *, user_agent: str, headers: Mapping[str, str]) -> HeaderMap:
    """The headers of a job's first request: base, `user_agent`, the job's own; the later one wins."""
    merged = dict(base)
    if user_agent:
        merged[b"user-agent"] = (b"User-Agent", user_agent.encode())
    _merge(merged, headers)
    return merged


def abroad(headers: HeaderMap) -> HeaderMap:
    """What may be told to another origin than the job's."""
    return {name: pair for name, pair in headers.items() if name in _KEPT_ABROAD}


def wire_headers(target: Target, headers: HeaderMap, basic: bytes) -> list[tuple[bytes, bytes]]:
    """The header fields of one request; `basic` is used unless there is an `Authorization`."""
    fields = [(b"Host", target.authority), *headers.values()]
    if basic and b"authorization" not in headers:
        fields.append((b"Authorization", basic))
    return fields


def basic_auth(userinfo: bytes) -> bytes:
    """`Basic` credentials (RFC 7617) of a URL's userinfo, or empty if there is none."""
    if not userinfo:
        return b""
    user, _, password = userinfo.partition(b":")
    return b"Basic " + base64.b64encode(unquote_to_bytes(user) + b":" + unquote_to_bytes(password))


class _Origin(TypedDict):
    """The fields of a `Target` that do not depend on its path."""

    scheme: str
    host: str
    port: int
    authority: bytes
    basic: bytes


@lru_cache(maxsize=1024)
def _origin(before_path: str) -> _Origin:
    # An aggregation's URLs are nearly all of one origin, and to parse it takes longer than all the rest.
    return _origin_of(httpx2.URL(before_path))


def _origin_of(url: httpx2.URL) -> _Origin:
    scheme, host = url.scheme, url.raw_host.decode("ascii")
    port = _PORTS.get(scheme, 0) if url.port is None else url.port
    if scheme not in _PORTS or not host or not 0 < port < _PORT_END:
        raise ValueError("scheme, host or port")
    return {
        "scheme": scheme,
        "host": host,
        "port": port,
        "authority": url.netloc,
        "basic": basic_auth(url.userinfo),
    }


def _merge(headers: HeaderMap, more: Mapping[str, str]) -> None:
    for name, value in more.items():
        raw = name.encode()
        lower = raw.lower()
        if lower not in _OURS and not lower.startswith(b"proxy-"):
            headers[lower] = (raw, str(value).encode())


def _decode(location: bytes) -> str:
    try:
        return location.decode()
    except UnicodeDecodeError:
        # In no encoding that we know: the same bytes, quoted.
        return _NOT_ASCII.sub(lambda byte: b"%%%02X" % byte[0][0], location).decode("ascii")
