"""The interface of notifier plugins, and the host that the service gives them.

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
    """The peer has confirmed that it has the message."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Not delivered; to be tried again on the schedule."""

    reason: str
    """One line without secrets; shown in `GET /jobs/<id>`."""
    after_s: float | None = None
    """Seconds to wait at least (a peer's `Retry-After`)."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Not delivered; trying again would not help (a peer's 410, a message too large)."""

    reason: str


Result = Delivered | RetryLater | Rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One callback."""

    job_id: str
    """The same in each attempt."""
    aggr_id: str
    body: bytes
    """The payload as UTF-8 JSON; the same bytes in each attempt."""
    traceparent: str = ""
    """The trace that the job belongs to (W3C Trace Context), to send along; empty: none."""


class Notifier(Protocol):
    """Delivers callbacks of one type; called from many tasks at once.

    It may also have the coroutine method `check() -> str` (see `Checkable`).
    """

    async def deliver(self, destination: str, payload: Payload) -> Result:
        """Deliver once, within a limited time.

        After a cancel the peer may or may not have the message; it will be delivered again. Expected failures
        are returned, not raised: an exception is logged, counted as a failure of the backend and retried.
        """


@runtime_checkable
class Checkable(Protocol):
    """A notifier that `downloader doctor` can check."""

    async def check(self) -> str:
        """Connect to the peer without delivering anything; returns what was found, on one line.

        It returns within a limited time. An exception is printed as the reason why the check failed.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the service gives to notifiers. All of it outlives the notifier, which must not close it."""

    client: httpx2.AsyncClient
    """Connects only to addresses that `egress.callbacks` allows; shared by all plugins. It follows no
    redirects, keeps no cookies and ignores the environment's proxies. It raises httpx2's exceptions;
    `EgressRefused`, one of them, is final."""
    storage: Storage
    """The service's file storage. The service does not delete what a notifier stores there."""
    transport: Transport
    """The transport of `client`. A plugin for very many callbacks may use it directly, with requests of
    `downloader.net.build_request`, for less than half of the CPU time."""
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("downloader.notify"))
    """Writes to the service's log, from `WARNING` on; texts must not contain secrets."""
    clock: Callable[[], float] = time.time
    """Seconds since 1970. To measure durations, use `trio.current_time()`."""
    group_commit: type[GroupCommit[Any, Any]] = GroupCommit
    """Gathers deliveries from many tasks into requests of several messages; see `GroupCommit`."""


NotifierFactory = Callable[[Mapping[str, Any], Host], AbstractAsyncContextManager[Notifier]]
"""Raises `downloader.errors.PluginError` if it refuses the section (naming the key) or cannot open."""
