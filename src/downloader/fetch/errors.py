"""Why an attempt failed: one class for each row of the contract's table (section 4).

::

    FetchError
    ├── StatusRefused      a status that is no success                      http_status
    ├── TlsRefused         certificate, version, alert                      tls
    ├── WrongMimeType      the content is not what the job expects          mime_type
    ├── AddressRefused     the egress policy says no                        egress
    ├── ConnectFailed      refused, reset, closed without a response        connect
    │   └── StaleConnection   ... on a kept connection: a fresh one is due
    ├── NameFailed         no address for the name                          dns
    ├── TimedOut           one of the bounded waits is over                 timeout
    ├── CutShort           the body ended before its end                    truncated
    ├── TooLarge           declared or counted                              too_large
    ├── RedirectRefused    too many, unusable or forbidden                  redirects
    ├── BadResponse        not HTTP as it should be                         protocol
    ├── LocalFault         our own disk, or our storage                     storage
    └── DestinationRefused the caller's bucket is missing or forbidden      storage

`explain` is the one seam at which the libraries' exceptions become these, by type and state only.
"""

from __future__ import annotations

import errno
import os
import ssl
from enum import Enum, auto
from typing import ClassVar, TypeVar

import h11
import httpcore2
import socksio

from downloader.errors import DownloaderError
from downloader.model import ErrorCode, describe_status
from downloader.net import EgressRefused, NameNotResolved, TlsFailed


class Treatment(Enum):
    """What a kind of failure calls for."""

    RETRY = auto()
    """Another attempt, if the job has one left."""
    FINAL = auto()
    """Another attempt would end alike."""
    RELEASE = auto()
    """Our own fault: again, without using up an attempt."""


class FetchError(DownloaderError):
    """An attempt failed; `str()` is the callback's `error`: one line, no secrets, no peer's text."""

    code: ClassVar[ErrorCode]
    treatment: ClassVar[Treatment]
    retry_after_s: float | None = None
    """What the origin asked for."""


class StatusRefused(FetchError):
    """A final status that is no success; 408, 425, 429 and 5xx are worth another attempt."""

    code = ErrorCode.HTTP_STATUS
    treatment = Treatment.FINAL

    def __init__(self, status: int) -> None:
        super().__init__(f"Received Status code {describe_status(status)}")


class StatusForNow(StatusRefused):
    """408, 425, 429 and 5xx."""

    treatment = Treatment.RETRY

    def __init__(self, status: int, *, retry_after_s: float | None) -> None:
        super().__init__(status)
        self.retry_after_s = retry_after_s


class TlsRefused(FetchError):
    """TLS verification or handshake."""

    code = ErrorCode.TLS
    treatment = Treatment.FINAL

    def __init__(self, reason: str) -> None:
        super().__init__(f"TLS Error Occured: {reason}")  # the spelling is the contract


class WrongMimeType(FetchError):
    """The content's type is not what the job expects."""

    code = ErrorCode.MIME_TYPE
    treatment = Treatment.FINAL


class AddressRefused(FetchError):
    """Egress policy; the text names the setting to change."""

    code = ErrorCode.EGRESS
    treatment = Treatment.FINAL


class ConnectFailed(FetchError):
    """No connection, or none that lasted until a response."""

    code = ErrorCode.CONNECT
    treatment = Treatment.RETRY


class StaleConnection(ConnectFailed):
    """The peer had closed a kept connection before our request reached it (RFC 9112, 9.5)."""


class NameFailed(FetchError):
    """The host's name has no address."""

    code = ErrorCode.DNS
    treatment = Treatment.RETRY


class TimedOut(FetchError):
    """A bounded wait is over."""

    code = ErrorCode.TIMEOUT
    treatment = Treatment.RETRY


class CutShort(FetchError):
    """The connection ended inside the response."""

    code = ErrorCode.TRUNCATED
    treatment = Treatment.RETRY


class TooLarge(FetchError):
    """Larger than `processor.max_size`."""

    code = ErrorCode.TOO_LARGE
    treatment = Treatment.FINAL


class RedirectRefused(FetchError):
    """A redirect that is not followed."""

    code = ErrorCode.REDIRECTS
    treatment = Treatment.FINAL


class BadResponse(FetchError):
    """The peer does not speak HTTP/1.1 as it should, or we cannot ask it in HTTP."""

    code = ErrorCode.PROTOCOL
    treatment = Treatment.FINAL


class LocalFault(FetchError):
    """Our own disk, or our storage."""

    code = ErrorCode.STORAGE
    treatment = Treatment.RELEASE


class DestinationRefused(FetchError):
    """The storage says that trying again will not help."""

    code = ErrorCode.STORAGE
    treatment = Treatment.FINAL


class ProxyRefused(DownloaderError):
    """The proxy did not connect us; becomes `ConnectFailed`."""


WIRE_ERRORS = (
    EgressRefused,
    NameNotResolved,
    TlsFailed,
    ProxyRefused,
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    h11.ProtocolError,
    socksio.ProtocolError,
)
"""What a connection may raise, in the libraries' own types; `explain` knows each."""


def explain(  # noqa: C901, PLR0911 - a table: one row for each exception type
    exc: BaseException, *, waiting: str = "", answered: bool = False, ended: bool = False
) -> FetchError:
    """The failure that one of `WIRE_ERRORS` means.

    Args:
        exc: what was raised.
        waiting: what a timeout means at this point ("no connection within 5 s").
        answered: a response has begun.
        ended: the peer has closed its side.
    """
    match exc:
        case EgressRefused():
            return AddressRefused(str(exc))
        case NameNotResolved():
            return NameFailed(str(exc))
        case TlsFailed():
            return TlsRefused(str(exc))
        case ProxyRefused():
            return ConnectFailed(str(exc))
        case httpcore2.TimeoutException():
            return TimedOut(waiting or "no progress in time")
        case h11.LocalProtocolError():
            return BadResponse("the request cannot be sent: its URL or headers are malformed")
        case h11.RemoteProtocolError() if ended:
            return _lost(answered=answered, how="closed")
        case h11.RemoteProtocolError():
            return BadResponse("malformed HTTP response")
        case socksio.ProtocolError():
            return ConnectFailed("the proxy does not speak SOCKS5")
        case httpcore2.ConnectError():
            number = _system_error(exc)
            if number in _OWN_SHORTAGES:
                return LocalFault(f"our own system: {os.strerror(number).lower()}")
            return ConnectFailed(f"connection failed: {_reason(exc, number)}")
        case _:
            return _lost(answered=answered, how="reset")


def _lost(*, answered: bool, how: str) -> FetchError:
    if answered:
        return CutShort(f"connection {how} before the end of the response")
    return ConnectFailed(f"connection {how} without a response")


_OWN_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""Of descriptors, memory and ports: no origin is to blame that we cannot open a connection."""


def _reason(exc: BaseException, number: int) -> str:
    """What the system says of a failed connection; never a peer's words."""
    if number:
        return os.strerror(number).lower()
    return "closed during the TLS handshake" if _caused_by(exc, ssl.SSLError) else "connection lost"


def _system_error(exc: BaseException) -> int:
    """The `errno` behind a failed connection, or 0. OpenSSL's numbers are none."""
    error = _caused_by(exc, OSError)
    return 0 if error is None or isinstance(error, ssl.SSLError) else error.errno or 0


E = TypeVar("E", bound=BaseException)


def _caused_by(exc: BaseException, kind: type[E]) -> E | None:
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, kind):
            return seen
        inner = seen.args[0] if seen.args else None
        seen = seen.__cause__ or (inner if isinstance(inner, BaseException) else None)
    return None
