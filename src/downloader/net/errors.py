"""The errors of requests.

Each class is also a subclass of the httpx2 exception that a caller of an `AsyncClient` expects. The texts are
one line, contain no secret and do not quote the peer. `downloader.fetch.errors` says which errors are
retried.
"""

from __future__ import annotations

import httpx2

from downloader.errors import DownloaderError


class NetError(DownloaderError, httpx2.TransportError):
    """Base of all errors below."""


class EgressRefused(NetError, httpx2.ConnectError):
    """The operator's egress policy forbids the connection; trying again would not help."""


class NameNotResolved(NetError, httpx2.ConnectError):
    """The host's name has no address, or the name servers did not answer in time."""

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(f"name not resolved: {host}: {reason}")


class ConnectFailed(NetError, httpx2.ConnectError):
    """No connection: refused, reset, unreachable, or lost in the TLS handshake."""

    def __init__(self, reason: str, *, errno: int = 0) -> None:
        super().__init__(f"connection failed: {reason}")
        self.errno = errno
        """The system's error number, or 0."""


class ProxyRefused(NetError, httpx2.ProxyError):
    """The proxy did not make the connection."""


class TlsFailed(NetError, httpx2.ConnectError):
    """The TLS handshake failed because of the certificate, the version or an alert.

    A connection that merely broke during the handshake is a `ConnectFailed`.
    """


class TimedOut(NetError, httpx2.TimeoutException):
    """A wait exceeded the time limit; the text says which wait."""


class ConnectionLost(NetError, httpx2.NetworkError):
    """The connection was closed or reset before a byte of the response came."""


class CutShort(NetError, httpx2.RemoteProtocolError):
    """The connection was closed or reset inside the response."""


class BadResponse(NetError, httpx2.RemoteProtocolError):
    """The response is not valid HTTP/1.1, or exceeds a bound."""


class BadRequest(NetError, httpx2.LocalProtocolError):
    """The request cannot be put into HTTP: the target or a header is malformed."""
