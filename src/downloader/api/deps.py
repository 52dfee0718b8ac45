"""What the API needs from the rest of the service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from downloader.config import ApiSettings
from downloader.storage import StoredFile
from downloader.store import JobStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiDeps:
    """Everything that the routes use."""

    store: JobStore
    settings: ApiSettings
    backends: frozenset[str]
    """Names of the configured notifier backends; any other `callback_type` is refused."""
    callback_limit: int
    """How many callbacks may be in flight to one destination over the fleet."""
    loopback: bool
    """The API listens on loopback only."""
    ready: Callable[[], Mapping[str, bool]]
    """Role names, and whether each runs; for `/health/ready`."""
    healthy: Callable[[], Mapping[str, bool]] = dict
    """Backends of a notifier in this process, and whether each is healthy; for `/health/ready`."""
    files: Callable[[str], Awaitable[StoredFile | None]] | None = None
    """`Storage.local` of the file storage; `None` where this process cannot reach it."""
