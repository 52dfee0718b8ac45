"""The interface of notifier plugins, and the `Host` that a notifier gets from the service.

An entry point of group `downloader.notifiers.v1` names a *factory*, `open_x(section, host)`: a callable that
takes the parsed TOML table of its section (`[backends.NAME]`) and a `Host`, and returns an async context
manager that yields a `Notifier`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import httpx2

from downloader.groupcommit import GroupCommit
from downloader.net import Transport
from downloader.storage import Storage


@dataclass(frozen=True, slots=True)
class Delivered:
    """The peer has confirmed the receipt of the message."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """The delivery failed, and is to be tried again on the schedule."""

    reason: str
    """One line without secrets; shown in `GET /jobs/<id>`."""
    after_s: float | None = None
    """Least seconds to wait (a peer's `Retry-After`)."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The delivery failed for good; a retry would not help (a peer's 410, a message too large)."""

    reason: str


Result = Delivered | RetryLater | Rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A callback."""

    job_id: str
    """The same in all attempts."""
    aggr_id: str
    body: bytes
    """The payload as UTF-8 JSON; the same bytes in all attempts."""
    traceparent: str = ""
    """The trace of the job (W3C Trace Context), to be sent to the peer; empty: none."""
    retry: str = ""
    """Names the request by which a client had the failed download run again; empty for a job that ran once.
    """

    @property
    def message_id(self) -> str:
        """Identifies the result that the callback reports: letters, digits and `-`, 31 characters at most.

        The job's id, unless a client had the download run again: the job then has a second result, which a
        peer must not take for a repetition of the first.
        """
        return f"{self.job_id}-{self.retry}" if self.retry else self.job_id


class Notifier(Protocol):
    """Delivers callbacks of a type; called from many tasks at the same time.

    A notifier may also have the coroutine method `check() -> str` (see `Checkable`).
    """

    async def deliver(self, destination: str, payload: Payload) -> Result:
        """Deliver once, within a limited time.

        After a cancel the peer may or may not have the message, which will be delivered again. Expected
        failures are returned. An exception is logged and counts as a failure of the backend, and the delivery
        is retried.
        """


@runtime_checkable
class Checkable(Protocol):
    """A notifier that `downloader doctor` can check."""

    async def check(self) -> str:
        """Connect to the peer without a delivery; returns the result on one line, within a limited time.

        An exception is printed as the reason why the check failed.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Resources of the service for notifiers. They outlive the notifier, which must not close them."""

    client: httpx2.AsyncClient
    """Connects only to addresses that `egress.callbacks` allows; shared by all plugins. The client follows no
    redirects, keeps no cookies and ignores the environment's proxies. It raises exceptions of httpx2;
    after `EgressRefused`, which is an exception of httpx2 too, a further try is useless."""
    storage: Storage
    """The service's file storage. The service does not delete what a notifier stores there."""
    transport: Transport
    """The transport of `client`. A plugin for very many callbacks may call `Transport.send`, which takes less
    than half of the CPU time."""
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("downloader.notify"))
    """Writes messages from `WARNING` on to the service's log; texts must not contain secrets."""
    clock: Callable[[], float] = time.time
    """Seconds since 1970. To measure durations, use `trio.current_time()`."""
    group_commit: type[GroupCommit[Any, Any]] = GroupCommit
    """Combines deliveries from many tasks in requests with several messages; see `GroupCommit`."""


NotifierFactory = Callable[[Mapping[str, Any], Host], AbstractAsyncContextManager[Notifier]]
"""Opens a notifier. Raises `downloader.errors.PluginError` if the section is refused (naming the key) or the
notifier cannot be opened."""
