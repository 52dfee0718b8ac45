"""The health of each backend: a circuit breaker that counts consecutive failures of the plugin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import trio

from downloader.observe import Event, get_logger

_log = get_logger()

UNHEALTHY_AFTER = 3
"""Consecutive failures after which a plugin is unhealthy. A single destination may cause one or two
failures."""


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """The health of a plugin, independent of the answers of destinations."""

    failures: int = 0
    """Consecutive failures: the plugin raised, hung or returned something that is not a `Result`."""
    last_error: str = ""
    """Reason of the last failure: one line without the exception's text."""
    lost_at: float = 0.0
    """When the plugin last became unhealthy (Trio time)."""
    regained_at: float = -math.inf
    """When the plugin last became healthy again (Trio time)."""

    @property
    def healthy(self) -> bool:
        """Whether there were fewer than `UNHEALTHY_AFTER` consecutive failures."""
        return self.failures < UNHEALTHY_AFTER

    def failed(self, error: str, *, now: float) -> BackendHealth:
        """The health after a further failure."""
        lost_at = now if self.healthy else self.lost_at
        return replace(self, failures=self.failures + 1, last_error=error, lost_at=lost_at)

    def worked(self, *, now: float) -> BackendHealth:
        """The health after the plugin returned a `Result` of any kind."""
        return replace(self, failures=0, regained_at=self.regained_at if self.healthy else now)


class Breakers:
    """The circuit breakers of all backends of a process; logs when a breaker opens or closes."""

    def __init__(self, backends: Iterable[str]) -> None:
        self._health = {name: BackendHealth() for name in backends}

    def __getitem__(self, name: str) -> BackendHealth:
        return self._health[name]

    @property
    def unhealthy(self) -> int:
        """How many backends are unhealthy."""
        return sum(not health.healthy for health in self._health.values())

    def healthy(self) -> Mapping[str, bool]:
        """Whether each backend is healthy."""
        return {name: health.healthy for name, health in self._health.items()}

    def facts(self) -> Mapping[str, Mapping[str, object]]:
        """The backends in the instance's report."""
        return {
            name: {"healthy": health.healthy, "last_error": health.last_error}
            for name, health in self._health.items()
        }

    def failed(
        self,
        name: str,
        reason: str,
        *,
        begun_at: float,
        error: BaseException | None = None,
        **facts: str,
    ) -> bool:
        """Count a failure of the plugin; returns whether the failure counts as an attempt at the callback.

        The failure of a healthy plugin counts as an attempt, because the callback may be the cause. A
        delivery that began (Trio time) before the plugin became healthy again is not counted. `error` is
        logged with the traceback, and `facts` name the callback.
        """
        before = self._health[name]
        stale = begun_at <= before.regained_at
        # Only the first failures are warnings: a plugin that always fails would fill the log.
        write = _log.warning if before.healthy and not stale else _log.debug
        write(Event.BACKEND_FAILED, backend=name, error=reason, exc_info=error, **facts)
        if stale:
            return False
        after = self._health[name] = before.failed(reason, now=trio.current_time())
        if before.healthy and not after.healthy:
            _log.error(Event.BACKEND_UNHEALTHY, backend=name, error=reason)
        return after.healthy

    def worked(self, name: str) -> None:
        """Note that the plugin returned a `Result`."""
        before = self._health[name]
        if not before.failures:
            return
        self._health[name] = before.worked(now=trio.current_time())
        if not before.healthy:
            _log.warning(Event.BACKEND_HEALTHY, backend=name)
