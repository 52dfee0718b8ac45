"""Log events, logging, counters, and the failpoints of tests."""

from __future__ import annotations

from downloader.observe.counters import NOTIFIER_COUNTERS, PROCESSOR_COUNTERS, Counters
from downloader.observe.events import Event
from downloader.observe.failpoints import failpoint
from downloader.observe.logging import configure, escape, get_logger

__all__ = [
    "NOTIFIER_COUNTERS",
    "PROCESSOR_COUNTERS",
    "Counters",
    "Event",
    "configure",
    "escape",
    "failpoint",
    "get_logger",
]
