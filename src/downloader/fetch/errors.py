"""Why an attempt failed, and what that calls for: the rows of the contract's table (section 4)."""

from __future__ import annotations

import errno
import os
from enum import Enum, auto

from downloader import net
from downloader.errors import DownloaderError
from downloader.model import ErrorCode, describe_status


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

    def __init__(
        self,
        text: str,
        code: ErrorCode,
        treatment: Treatment = Treatment.FINAL,
        *,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.code = code
        self.treatment = treatment
        self.retry_after_s = retry_after_s
        """What the origin asked for."""


_KINDS: dict[type[net.NetError], tuple[ErrorCode, Treatment]] = {
    net.EgressRefused: (ErrorCode.EGRESS, Treatment.FINAL),
    net.NameNotResolved: (ErrorCode.DNS, Treatment.RETRY),
    net.ConnectFailed: (ErrorCode.CONNECT, Treatment.RETRY),
    net.ConnectionLost: (ErrorCode.CONNECT, Treatment.RETRY),
    net.ProxyRefused: (ErrorCode.CONNECT, Treatment.RETRY),
    net.TlsFailed: (ErrorCode.TLS, Treatment.FINAL),
    net.TimedOut: (ErrorCode.TIMEOUT, Treatment.RETRY),
    net.CutShort: (ErrorCode.TRUNCATED, Treatment.RETRY),
    net.BadResponse: (ErrorCode.PROTOCOL, Treatment.FINAL),
    net.BadRequest: (ErrorCode.PROTOCOL, Treatment.FINAL),
}

_OWN_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""Of descriptors, memory and ports: no origin is to blame that we cannot open a connection."""

_RETRIED_4XX = frozenset({408, 425, 429})


def explain(exc: net.NetError) -> FetchError:
    """The failure that an exception of `downloader.net` means, by its type."""
    if isinstance(exc, net.ConnectFailed) and exc.errno in _OWN_SHORTAGES:
        return own_fault(f"our own system: {os.strerror(exc.errno).lower()}")
    code, treatment = _KINDS[type(exc)]
    text = str(exc)
    if code is ErrorCode.TLS:
        text = f"TLS Error Occured: {text}"  # the spelling is the contract
    return FetchError(text, code, treatment)


def own_fault(text: str) -> FetchError:
    """Our own disk, system, storage or store is to blame."""
    return FetchError(text, ErrorCode.STORAGE, Treatment.RELEASE)


def bad_status(status: int, *, retry_after_s: float | None) -> FetchError:
    """A final status that is no success; 408, 425, 429 and 5xx are worth another attempt."""
    text = f"Received Status code {describe_status(status)}"
    if status not in _RETRIED_4XX and status not in range(500, 600):
        return FetchError(text, ErrorCode.HTTP_STATUS)
    return FetchError(text, ErrorCode.HTTP_STATUS, Treatment.RETRY, retry_after_s=retry_after_s)
