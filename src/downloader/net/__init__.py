"""Outgoing HTTP: URLs, the egress policy, connections, and a transport for `httpx2`."""

from __future__ import annotations

from downloader.net.dial import Resolver
from downloader.net.errors import (
    BadRequest,
    BadResponse,
    ConnectFailed,
    ConnectionLost,
    CutShort,
    EgressRefused,
    NameNotResolved,
    NetError,
    ProxyRefused,
    TimedOut,
    TlsFailed,
)
from downloader.net.policy import EgressPolicy, host_matches
from downloader.net.request import (
    Route,
    is_field_value,
    is_forbidden,
    is_token,
)
from downloader.net.tls import tls_context
from downloader.net.transport import (
    NetLimits,
    Response,
    ResponseBody,
    Transport,
    guarded_client,
    open_transport,
)
from downloader.net.url import (
    HIDDEN,
    Origin,
    Url,
    UrlError,
    Use,
    host_of,
    local_host,
    parse_endpoint,
    redact_url,
    requested_url,
    userinfo_of,
)

__all__ = [
    "HIDDEN",
    "BadRequest",
    "BadResponse",
    "ConnectFailed",
    "ConnectionLost",
    "CutShort",
    "EgressPolicy",
    "EgressRefused",
    "NameNotResolved",
    "NetError",
    "NetLimits",
    "Origin",
    "ProxyRefused",
    "Resolver",
    "Response",
    "ResponseBody",
    "Route",
    "TimedOut",
    "TlsFailed",
    "Transport",
    "Url",
    "UrlError",
    "Use",
    "guarded_client",
    "host_matches",
    "host_of",
    "is_field_value",
    "is_forbidden",
    "is_token",
    "local_host",
    "open_transport",
    "parse_endpoint",
    "redact_url",
    "requested_url",
    "tls_context",
    "userinfo_of",
]
