"""Settings and limits of fetching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from downloader.net import NetLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """The keys of `[processor]` used by a fetcher, with the same meanings and defaults.

    A copy of those fields of `downloader.config`, so that `downloader fetch` starts without importing it.
    """

    concurrency: int = 256
    request_headers: Mapping[str, str] = field(
        default_factory=lambda: {"Accept": "*/*", "User-Agent": "downloader"}
    )
    max_retries: int = 2
    retry_backoff: float = 120.0
    max_size: int = 10 * 1024**3
    download_timeout: float = 3600.0
    max_download_timeout: float = 86400.0
    response_timeout: float = 30.0
    disk_low: float = 90.0
    ca_file: str = ""
    robots: bool = False

    @classmethod
    def of(cls, processor: Any) -> Self:
        """The settings of `processor`, an object with attributes of the same names."""
        return cls(**{row.name: getattr(processor, row.name) for row in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Limits of an attempt: constants of the service, smaller in tests."""

    net: NetLimits = field(default_factory=NetLimits)
    stall_s: float = 30.0
    """Seconds below `stall_bytes_per_s` after which an attempt fails."""
    stall_bytes_per_s: int = 1024
    redirects: int = 10
    memory_bytes: int = 64 * 1024 * 1024
    """Budget for the bodies in memory of all attempts together: 256 pictures of 250 KB."""
    room_s: float = 1.0
    """How long a body waits for room in memory before it is written to a file, which takes 50% more CPU.
    Short, because slow origins may hold the memory of their aggregations."""
    store_s: float = 120.0
    """Time limit of storing an empty file; longer than the storages' own timeouts, which give better
    errors."""
