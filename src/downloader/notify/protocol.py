"""What a notifier plugin is; plugins import this module and `downloader.errors`, nothing else.

An entry point of group `downloader.notifiers.v1` names a *factory*: a callable that takes the parsed
TOML table of its section (`[backends.NAME]`) and gives an async context manager that yields a `Notifier`.
One that connects to where clients say does so through `network_backend()`, so that the operator's
`egress.callbacks` holds for it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable


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


NotifierFactory = Callable[[Mapping[str, Any]], AbstractAsyncContextManager[Notifier]]
"""Raises `downloader.errors.PluginError` for a section it refuses (naming the key) or cannot open."""
