"""Downloading one file: `open_fetcher` gives a `Fetcher`, whose `attempt` turns a lease into an outcome."""

from __future__ import annotations

from downloader.fetch.attempt import BucketOpener, Fetcher, FetchLimits
from downloader.fetch.fetcher import open_fetcher
from downloader.fetch.lasting import LastingParts
from downloader.fetch.retry import MAX_COOLDOWN_S
from downloader.fetch.robots import OnCrawlDelay
from downloader.fetch.spool import disk_used_percent
