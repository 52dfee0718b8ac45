"""What a notifier plugin is, and what the service lends it.

An entry point of group `downloader.notifiers.v1` names a *factory*, `open_x(section, host)`: a callable that
takes the parsed TOML table of its section (`[backends.NAME]`) and a `Host`, and gives an async context
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
    """The peer has said that it has the message."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Not delivered now; try again on the schedule."""

    reason: str
    """One line, no secrets; people read it in `GET /jobs/<id>`."""
    after_s: float | None = None
    """Not before this many seconds (a peer's `Retry-After`)."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Not delivered, and trying again would not help (a peer's 410, a message too large)."""

    reason: str


Result = Delivered | RetryLater | Rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One callback."""

    job_id: str
    """Stable over retries."""
    aggr_id: str
    body: bytes
    """The payload of the contract as UTF-8 JSON; byte-identical over retries."""


class Notifier(Protocol):
    """Delivers callbacks of one type; called from many tasks at once.

    It may have a second coroutine, `check() -> str` (see `Checkable`).
    """

    async def deliver(self, destination: str, payload: Payload) -> Result:
        """Deliver once, within a bounded time, and tell how it went.

        A cancel leaves it unknown whether the peer has the message; it will be delivered again.
        Expected failures are answered, not raised: whatever this raises is logged, counted against
        the backend's health and retried.
        """


@runtime_checkable
class Checkable(Protocol):
    """What `downloader doctor` asks of a notifier that has it."""

    async def check(self) -> str:
        """Try the peer without delivering anything, and tell on one line what was found.

        Within a bounded time. Whatever it raises is printed as the reason why the check failed.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What the service lends a notifier; all of it outlives the notifier, which closes none of it."""

    client: httpx2.AsyncClient
    """Sends requests only to addresses that the operator's `egress.callbacks` allows; shared by all plugins.
    It follows no redirect, keeps no cookies and ignores the environment's proxies. It raises httpx2's
    exceptions, of which `EgressRefused` is final."""
    storage: Storage
    """The service's own file storage. A notifier may keep something there; nobody else deletes that."""
    transport: Transport
    """What `client` sends through. A plugin for very many callbacks may use it by itself, with requests of
    `downloader.net.build_request`: that costs less than half of the CPU time."""
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("downloader.notify"))
    """Writes to the service's log, from `WARNING` on; texts may hold no secrets."""
    clock: Callable[[], float] = time.time
    """Seconds since 1970. Not for measuring a duration: `trio.current_time()` is."""
    group_commit: type[GroupCommit[Any, Any]] = GroupCommit
    """Gathers deliveries from many tasks into requests of several messages; see `GroupCommit`."""


NotifierFactory = Callable[[Mapping[str, Any], Host], AbstractAsyncContextManager[Notifier]]
"""Raises `downloader.errors.PluginError` for a section it refuses (naming the key) or cannot open."""
