"""Failures of attempts, and whether the job is retried."""

from __future__ import annotations

import errno
import os
from enum import Enum, auto
from http import HTTPStatus

from downloader import net
from downloader.errors import DownloaderError
from downloader.model import ErrorCode, describe_status


class Treatment(Enum):
    """How a job goes on after a failed attempt."""

    RETRY = auto()
    """Another attempt, if the job has any left."""
    FINAL = auto()
    """No further attempt, which would fail in the same way."""
    RELEASE = auto()
    """A fault of the service: another attempt, and the failed attempt does not count."""
    COOL_DOWN = auto()
    """The origin asks for a pause: the whole aggregation waits, then another attempt follows."""


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
        """The origin's `Retry-After`, in seconds."""
        self.from_host = True
        """Whether the host of the job's URL failed, and not a proxy or the target of a redirect."""


_KINDS: dict[type, tuple[ErrorCode, Treatment]] = {
    net.NetError: (ErrorCode.CONNECT, Treatment.RETRY),
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
"""Code and treatment of errors by class; subclasses are treated like the nearest class here."""

_OWN_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""Errors of connecting that mean a shortage of descriptors, memory or ports on the local machine."""

_RETRIED_4XX = frozenset({408, 425})


def explain(exc: net.NetError) -> FetchError:
    """The `FetchError` for an exception of `downloader.net`."""
    if isinstance(exc, net.ConnectFailed) and exc.errno in _OWN_SHORTAGES:
        return own_fault(f"our own system: {os.strerror(exc.errno).lower()}")
    code, treatment = next(_KINDS[kind] for kind in type(exc).__mro__ if kind in _KINDS)
    text = str(exc)
    if code is ErrorCode.TLS:
        text = f"TLS Error Occured: {text}"  # the spelling is the contract
    return FetchError(text, code, treatment)


def own_fault(text: str) -> FetchError:
    """A failure of the service's own disk, system, storage or store."""
    return FetchError(text, ErrorCode.STORAGE, Treatment.RELEASE)


def bad_status(status: int, *, retry_after_s: float | None, conditional: bool) -> FetchError:
    """The failure for a status that is not a success; 408, 425, 429 and 5xx are retried.

    A 304 to a `conditional` request has its own code.
    """
    text = f"Received Status code {describe_status(status)}"
    if status == HTTPStatus.TOO_MANY_REQUESTS or (
        status == HTTPStatus.SERVICE_UNAVAILABLE and retry_after_s is not None
    ):
        return FetchError(text, ErrorCode.HTTP_STATUS, Treatment.COOL_DOWN, retry_after_s=retry_after_s)
    if status == HTTPStatus.NOT_MODIFIED and conditional:
        return FetchError(text, ErrorCode.NOT_MODIFIED)
    if status not in _RETRIED_4XX and status not in range(500, 600):
        return FetchError(text, ErrorCode.HTTP_STATUS)
    return FetchError(text, ErrorCode.HTTP_STATUS, Treatment.RETRY, retry_after_s=retry_after_s)
