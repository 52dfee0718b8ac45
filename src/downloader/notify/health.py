"""How each backend fares, counted as a circuit breaker does: failures of the plugin itself, in a row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import trio

from downloader.observe import Event, get_logger

_log = get_logger()

UNHEALTHY_AFTER = 3
"""Failures of a plugin in a row; one or two may be one odd destination's."""


@dataclass(frozen=True, slots=True)
class BackendHealth:
    """How a plugin itself fares, whatever its destinations answer."""

    failures: int = 0
    """In a row: it raised, hung, or answered what is no result."""
    last_error: str = ""
    """Of the last failure ever; one line without anything of the plugin's own text."""
    lost_at: float = 0.0
    """Trio time at which it became unhealthy, if it is."""
    regained_at: float = -math.inf
    """Trio time at which it became healthy again, if it ever was not."""

    @property
    def healthy(self) -> bool:
        """Whether the plugin can be relied on."""
        return self.failures < UNHEALTHY_AFTER

    def failed(self, error: str, *, now: float) -> BackendHealth:
        """The health after one more failure."""
        lost_at = now if self.healthy else self.lost_at
        return replace(self, failures=self.failures + 1, last_error=error, lost_at=lost_at)

    def worked(self, *, now: float) -> BackendHealth:
        """The health after the plugin did its part, also if the destination did not."""
        return replace(self, failures=0, regained_at=self.regained_at if self.healthy else now)


class Breakers:
    """A circuit breaker for each backend of a process; the log tells when one opens or closes."""

    def __init__(self, backends: Iterable[str]) -> None:
        self._health = {name: BackendHealth() for name in backends}

    def __getitem__(self, name: str) -> BackendHealth:
        return self._health[name]

    @property
    def unhealthy(self) -> int:
        """How many backends are unhealthy."""
        return sum(not health.healthy for health in self._health.values())

    def healthy(self) -> Mapping[str, bool]:
        """Whether each is healthy."""
        return {name: health.healthy for name, health in self._health.items()}

    def facts(self) -> Mapping[str, Mapping[str, object]]:
        """What the instance's report says of its backends."""
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
        """Note a failure of the plugin; answers whether it is to count as an attempt at the callback.

        It does while the plugin is healthy: then the callback may be at fault. What began in an outage that
        is over says nothing of the plugin now.

        Args:
            name: of the backend.
            reason: what it did, one line.
            begun_at: when the delivery began, Trio time.
            error: what it raised, for its traceback.
            facts: of the callback, for the log.
        """
        before = self._health[name]
        stale = begun_at <= before.regained_at
        # A plugin that fails each time would fill the log: the first failures tell.
        tell = _log.warning if before.healthy and not stale else _log.debug
        tell(Event.BACKEND_FAILED, backend=name, error=reason, exc_info=error, **facts)
        if stale:
            return False
        after = self._health[name] = before.failed(reason, now=trio.current_time())
        if before.healthy and not after.healthy:
            _log.error(Event.BACKEND_UNHEALTHY, backend=name, error=reason)
        return after.healthy

    def worked(self, name: str) -> None:
        """Note that the plugin did its part."""
        before = self._health[name]
        if not before.failures:
            return
        self._health[name] = before.worked(now=trio.current_time())
        if not before.healthy:
            _log.warning(Event.BACKEND_HEALTHY, backend=name)
