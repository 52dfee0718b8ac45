"""Counters of an instance and role. The store sums the counters of all instances, ended instances included.

A *series* is a counter's name and the values of its labels, joined by `|`: `downloads_failed|dns`. A
histogram has a series for each bucket and one for the sum. `queue_wait_seconds_bucket|0.5` counts the values
up to 0.5 that are in no smaller bucket; `queue_wait_seconds_sum` is the sum of all values in microseconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping
from math import inf

API_COUNTERS: Mapping[str, str] = {
    "jobs_accepted": "jobs taken in, by route",
    "jobs_refused": "jobs not taken in, by route and problem code",
    "requests": "requests answered, by route and class of the status",
}

PROCESSOR_COUNTERS: Mapping[str, str] = {
    "downloads_succeeded": "downloads whose file was stored",
    "downloads_failed": "downloads that failed for good",
    "downloads_retried": "attempts that failed and are followed by another",
    "downloads_released": "downloads handed back without counting the attempt",
    "downloads_throttled": "attempts that ended with a cooldown of their aggregation and do not count",
    "leases_lost": "downloads that another instance has taken over",
    "leases_recovered": "downloads taken over from instances that died",
    "bytes": "bytes of stored files",
    "poison": "downloads that failed because their workers died too often",
    "in_flight": "downloads in flight now",
}

NOTIFIER_COUNTERS: Mapping[str, str] = {
    "callbacks_delivered": "callbacks that their peer has acknowledged",
    "callbacks_failed": "callbacks given up, kept to be sent again",
    "callbacks_retried": "deliveries that failed and are followed by another",
    "callbacks_released": "callbacks handed back without counting the attempt",
    "leases_lost": "callbacks that another instance has taken over",
    "leases_recovered": "callbacks taken over from instances that died",
    "poison": "callbacks that failed because their workers died too often",
    "in_flight": "callbacks in flight now",
    "backends_unhealthy": "backends that are unhealthy now, counted for each instance",
}

COUNTERS: Mapping[str, Mapping[str, str]] = {
    "api": API_COUNTERS,
    "processor": PROCESSOR_COUNTERS,
    "notifier": NOTIFIER_COUNTERS,
}
"""By role."""

_LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, inf)
_SHORT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, inf)

HISTOGRAMS: Mapping[str, tuple[float, ...]] = {
    "queue_wait_seconds": _LONG_S,
    "download_seconds": _LONG_S,
    "delivery_seconds": _LONG_S,
    "store_call_seconds": _SHORT_S,
}
"""Upper bounds of the buckets, in seconds."""

SEPARATOR = "|"

BUCKET, SUM = "_bucket", "_sum"
"""Endings of the names of a histogram's series."""

_Key = tuple[str, ...]
"""Name and label values."""


class Counters:
    """Counters and histograms, which only grow, and gauges that are read by functions.

    One instance per role and process. Adding takes less than a microsecond.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self._values: dict[_Key, int] = {}
        self._histograms: dict[_Key, tuple[tuple[float, ...], list[float]]] = {}
        """Upper bounds, and a list of the counts of the buckets followed by the sum of the values."""
        self._gauges: dict[str, Callable[[], int]] = {}

    def add(self, name: str, amount: int = 1, *labels: str) -> None:
        """Add to a counter. Labels must have few values, because each combination is a permanent series.

        Raises:
            KeyError: a name that is not in the role's table.
        """
        key = (name, *labels)
        try:
            self._values[key] += amount
        except KeyError:
            if name not in self._names:
                raise
            self._values[key] = amount

    def observe(self, name: str, seconds: float, *labels: str) -> None:
        """Add a value to a histogram.

        Raises:
            KeyError: a name that is not in `HISTOGRAMS`.
        """
        key = (name, *labels)
        try:
            bounds, counts = self._histograms[key]
        except KeyError:
            bounds = HISTOGRAMS[name]
            counts = [0] * (len(bounds) + 1)
            self._histograms[key] = bounds, counts
        counts[bisect_left(bounds, seconds)] += 1
        counts[-1] += seconds

    def gauge(self, name: str, read: Callable[[], int]) -> None:
        """Register the function that reads the gauge `name`."""
        self._gauges[name] = read

    def snapshot(self) -> dict[str, int]:
        """Counters, summed over the labels, and gauges, by name."""
        sums = dict.fromkeys(self._names, 0)
        for (name, *_), value in self._values.items():
            sums[name] += value
        return sums | {name: read() for name, read in self._gauges.items()}

    def series(self) -> dict[str, int]:
        """Counters and histograms, by series."""
        series = {SEPARATOR.join(key): value for key, value in self._values.items()}
        for (name, *labels), (bounds, (*counts, seconds)) in self._histograms.items():
            series[SEPARATOR.join((name + SUM, *labels))] = int(seconds * 1_000_000)
            for bound, count in zip(bounds, counts, strict=True):
                if count:
                    series[SEPARATOR.join((name + BUCKET, *labels, f"{bound:g}"))] = int(count)
        return series


def by_name(series: Mapping[str, int]) -> dict[str, int]:
    """Counters, summed over the labels, by name; without histograms."""
    sums: defaultdict[str, int] = defaultdict(int)
    for key, value in series.items():
        name = key.partition(SEPARATOR)[0]
        if not name.endswith((BUCKET, SUM)):
            sums[name] += value
    return dict(sums)
