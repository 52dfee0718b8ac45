"""Dependencies of the routes: parts of the service, and the API's own state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from downloader.api.auth import Callers
from downloader.api.events import Events
from downloader.api.intake import Intake
from downloader.api.openapi import Description
from downloader.api.origin import Cors
from downloader.api.parse import JobRules
from downloader.api.search import Aggregations
from downloader.config import ApiSettings
from downloader.model import JobSpec
from downloader.observe import API_COUNTERS, Counters, Traces
from downloader.storage import StoredFile
from downloader.store import JobStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiDeps(JobRules):
    """Dependencies of the routes."""

    store: JobStore
    settings: ApiSettings
    callback_limit: int
    """Most callbacks in flight to one destination over the fleet."""
    own_limits: Mapping[str, int] = field(default_factory=dict)
    """Limits of single callback destinations, by queue."""
    keep_s: float
    """How many seconds a job without a callback is kept (`notifier.failed_retention`)."""
    loopback: bool
    """The API listens on loopback only."""
    ready: Callable[[], Mapping[str, bool]]
    """For `/health/ready`: whether each role runs, by name."""
    troubles: Callable[[], Mapping[str, str]] = dict
    """Lines of text about the troubles of this process, by name (see `TROUBLES`)."""
    healthy: Callable[[], Mapping[str, bool]] = dict
    """For `/health/ready`: whether each backend of this process's notifier is healthy, by name."""
    counters: Counters = field(default_factory=lambda: Counters(API_COUNTERS))
    """The counters of this process's API."""
    traces: Traces | None = None
    download_url: Callable[[JobSpec, str], str]
    """The URL of a job's file, as in the callback; raises `StorageError` if the storage fails."""
    files: Callable[[str], Awaitable[StoredFile | None]] | None = None
    """`Storage.local` of the file storage; `None` if this process has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """State that the handlers of one `Api` share."""

    deps: ApiDeps
    store: JobStore
    """`deps.store`."""
    callers: Callers
    """Empty while the API is open."""
    cors: Cors
    intake: Intake
    events: Events
    search: Aggregations
    description: Description
