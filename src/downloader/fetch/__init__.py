"""Downloading one file: `open_fetcher` gives a `Fetcher`, whose `attempt` turns a lease into an outcome."""

from __future__ import annotations

from downloader.fetch.fetcher import Fetcher, open_fetcher
from downloader.fetch.retry import MAX_COOLDOWN_S
from downloader.fetch.settings import FetchLimits, FetchSettings
from downloader.fetch.sink import CompleteBody
from downloader.fetch.spool import disk_used_percent
