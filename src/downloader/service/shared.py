"""What the roles of one process share, and how long its stop may take."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from downloader.config import Settings
from downloader.model import now_ms
from downloader.notify import Bulkhead
from downloader.observe import Counters, Traces
from downloader.scheduler import Stop
from downloader.service.files import Files
from downloader.store import JobStore

RESERVE = 0.25
"""Part of the grace period reserved for handing back, callbacks and closing."""


@dataclass(slots=True, kw_only=True)
class Instance:
    """What the roles of one process share."""

    settings: Settings
    roles: frozenset[str]
    store: JobStore
    files: Files
    owner: str
    rng: random.Random
    counters: Mapping[str, Counters]
    """By role."""
    traces: Traces | None
    """`None`: there are none."""
    stop: Stop = field(default_factory=Stop)
    """The stop of downloads and the API."""
    stop_callbacks: Stop = field(default_factory=Stop)
    """The stop of callbacks; begins when no more downloads can finish here."""
    running: dict[str, bool] = field(default_factory=dict)
    """Per role, whether it runs; for readiness."""
    bulkhead: Bulkhead | None = None
    """Divides the slots among the backends; notifiers only."""
    started_ms: int = field(default_factory=now_ms)

    @property
    def grace_s(self) -> float:
        """Seconds from the first signal to the exit."""
        return grace_of(self.settings, self.roles)


def grace_of(settings: Settings, roles: frozenset[str]) -> float:
    """How many seconds a process with these roles has for its stop."""
    return settings.processor.grace if "processor" in roles else settings.notifier.grace
