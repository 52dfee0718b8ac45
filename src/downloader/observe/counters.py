"""Counters of one instance and role: what `GET /stats/<role>` sums over the live instances."""

from __future__ import annotations

from collections.abc import Callable, Mapping

PROCESSOR_COUNTERS: Mapping[str, str] = {
    "downloads_succeeded": "downloads whose file was stored",
    "downloads_failed": "downloads that failed for good",
    "downloads_retried": "attempts that failed and are followed by another",
    "downloads_released": "downloads handed back without counting the attempt",
    "downloads_throttled": "attempts that ended with a cooldown of their aggregation and do not count",
    "leases_lost": "downloads that another instance has taken over",
    "leases_recovered": "downloads taken over from instances that died",
    "bytes": "bytes of stored files",
    "in_flight": "downloads in flight now",
}

NOTIFIER_COUNTERS: Mapping[str, str] = {
    "callbacks_delivered": "callbacks that their peer has acknowledged",
    "callbacks_failed": "callbacks given up, kept to be sent again",
    "callbacks_retried": "deliveries that failed and are followed by another",
    "callbacks_released": "callbacks handed back without counting the attempt",
    "leases_lost": "callbacks that another instance has taken over",
    "leases_recovered": "callbacks taken over from instances that died",
    "in_flight": "callbacks in flight now",
    "backends_unhealthy": "backends that are unhealthy now, counted for each instance",
}


class Counters:
    """Counters that only grow, and gauges that are read by functions. One instance per role and process."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._values = dict.fromkeys(names, 0)
        self._gauges: dict[str, Callable[[], int]] = {}

    def add(self, name: str, amount: int = 1) -> None:
        """Add to a counter.

        Raises:
            KeyError: a name that is not in the role's table.
        """
        self._values[name] += amount

    def gauge(self, name: str, read: Callable[[], int]) -> None:
        """Have `name` read by a function from now on."""
        self._gauges[name] = read

    def snapshot(self) -> dict[str, int]:
        """All values now."""
        return self._values | {name: read() for name, read in self._gauges.items()}
