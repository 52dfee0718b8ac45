"""What decides how files are fetched: the settings of the operator, and bounds that are constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from downloader.net import NetLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """The keys of `[processor]` that a fetcher needs, with the same meanings and defaults.

    Not the model of the configuration itself, so that `downloader fetch` does not have to import that.
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
    disk_low: float = 90.0
    ca_file: str = ""
    robots: bool = False

    @classmethod
    def of(cls, processor: Any) -> Self:
        """The settings in `[processor]` of a configuration, given as an object with these attributes."""
        return cls(**{each.name: getattr(processor, each.name) for each in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Bounds of an attempt; constants of the service, which tests make small."""

    net: NetLimits = field(default_factory=NetLimits)
    stall_s: float = 30.0
    """Seconds below `stall_bytes_per_s` after which an attempt is given up."""
    stall_bytes_per_s: int = 1024
    redirects: int = 10
    store_s: float = 120.0
    """For storing a file of any size; longer than the storages' own time-outs, whose errors have a reason."""
