"""The request headers of a download: how headers are merged, and which headers go to another origin. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from downloader.model import JobSpec
from downloader.net import Origin, is_forbidden

Field = tuple[bytes, bytes]
"""Name and value of a header, as sent."""

HeaderMap = dict[bytes, Field]
"""Lower-case name to `(name, value)`, as sent."""

_KEPT = frozenset({b"accept", b"accept-encoding", b"user-agent"})
"""Headers also sent to another origin: never secret, and not specific to an origin."""


def base_headers(configured: Mapping[str, str]) -> HeaderMap:
    """The configured request headers, encoded; `Accept-Encoding: identity` unless configured otherwise."""
    headers: HeaderMap = {b"accept-encoding": (b"Accept-Encoding", b"identity")}
    _merge(headers, configured)
    return headers


def job_headers(base: HeaderMap, *, user_agent: str, headers: Mapping[str, str]) -> HeaderMap:
    """The headers of a job's first request: base, `user_agent`, then the job's own.

    With an empty `User-Agent` the header is not sent.
    """
    merged = dict(base)
    if user_agent:
        merged[b"user-agent"] = (b"User-Agent", user_agent.encode())
    _merge(merged, headers)
    if b"user-agent" in merged and not merged[b"user-agent"][1]:
        del merged[b"user-agent"]
    return merged


def conditions(spec: JobSpec) -> HeaderMap:
    """The headers of the job's conditions, which all hops get: the validators belong to the file."""
    headers: HeaderMap = {}
    if spec.if_none_match:
        headers[b"if-none-match"] = (b"If-None-Match", spec.if_none_match.encode())
    if spec.if_modified_since:
        headers[b"if-modified-since"] = (b"If-Modified-Since", spec.if_modified_since.encode())
    return headers


def may_keep(origin: Origin, following: Origin) -> bool:
    """Whether a redirect keeps credentials and the job's own headers.

    True within an origin, and from http to https on one host.
    """
    if following == origin:
        return True
    return following.host == origin.host and (origin.scheme, following.scheme) == ("http", "https")


def without_secrets(headers: HeaderMap) -> HeaderMap:
    """The headers for an origin other than the job's."""
    return {name: pair for name, pair in headers.items() if name in _KEPT}


def asks_for_gzip(headers: HeaderMap) -> bool:
    """Whether the request accepts gzip, so that a body in gzip is stored undecoded."""
    return b"gzip" in headers.get(b"accept-encoding", (b"", b""))[1].lower()


def is_conditional(headers: HeaderMap) -> bool:
    """Whether the request is conditional on a change of the file."""
    return b"if-none-match" in headers or b"if-modified-since" in headers


def _merge(headers: HeaderMap, more: Mapping[str, str]) -> None:
    for name, value in more.items():
        if not is_forbidden(name):
            raw = name.encode()
            headers[raw.lower()] = (raw, str(value).encode())
