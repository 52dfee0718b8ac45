"""The values of `GET /stats/*` under the predecessor's names, for dashboards that use the old names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from downloader.model import ErrorCode, Outcome
from downloader.observe import Counters

PROCESSOR_NAMES: Mapping[str, str] = {
    "alive": "live processors",
    "workers": "downloads in flight now",
    "maxWorkers": "the most at once in each process, since it started",
    "spawnedWorkers": "attempts begun",
    "workerPools": "aggregations with downloads in flight now, counted for each process",
    "maxWorkerPools": "the most at once in each process, since it started",
    "spawnedWorkerPools": "how often an aggregation got its first download in flight in a process",
    "failures": "downloads that failed for good",
    "download.response.<status>": "attempts that were answered with this status",
    "download.response.tls": "attempts that failed with `error_code` `tls`",
    "download.response.mime": "attempts that failed with `error_code` `mime_type`",
}

NOTIFIER_NAMES: Mapping[str, str] = {
    "alive": "live notifiers",
    "successfulCallbacks": "as `callbacks_delivered`",
    "failedCallbacks": "as `callbacks_failed`",
}

_NOW = ("alive", "workers", "maxWorkers", "workerPools", "maxWorkerPools")
"""The values that may decrease."""

_COUNTED = ("workers", "maxWorkers", "maxWorkerPools", "spawnedWorkers", "spawnedWorkerPools")

_CODES: Mapping[str, str] = {ErrorCode.TLS: "tls", ErrorCode.MIME_TYPE: "mime"}


class Workers:
    """Counts downloads ("workers") and aggregations with downloads ("worker pools") in a process."""

    def __init__(self) -> None:
        self._in_flight: Counter[str] = Counter()
        """By aggregation."""
        self._counts = dict.fromkeys(_COUNTED, 0)
        self._responses: Counter[str] = Counter()

    @contextmanager
    def working(self, aggr_id: str) -> Iterator[None]:
        """A download is in flight while the context lasts."""
        self._in_flight[aggr_id] += 1
        counts = self._counts
        counts["workers"] += 1
        counts["maxWorkers"] = max(counts["maxWorkers"], counts["workers"])
        counts["maxWorkerPools"] = max(counts["maxWorkerPools"], len(self._in_flight))
        counts["spawnedWorkers"] += 1
        counts["spawnedWorkerPools"] += self._in_flight[aggr_id] == 1
        try:
            yield
        finally:
            counts["workers"] -= 1
            self._in_flight[aggr_id] -= 1
            if not self._in_flight[aggr_id]:
                del self._in_flight[aggr_id]

    def ended(self, outcome: Outcome) -> None:
        """Count the outcome of an attempt."""
        kind = _CODES.get(outcome.error_code) or outcome.response_code
        if kind:
            self._responses[f"download.response.{kind}"] += 1

    def snapshot(self, counters: Counters) -> dict[str, int]:
        """All values now; some values are from `counters`, the processor's."""
        return {
            "alive": 1,
            "workerPools": len(self._in_flight),
            "failures": counters.snapshot()["downloads_failed"],
            **self._counts,
            **self._responses,
        }


def callbacks(counters: Counters) -> dict[str, int]:
    """The notifier's values now."""
    counts = counters.snapshot()
    return {
        "alive": 1,
        "successfulCallbacks": counts["callbacks_delivered"],
        "failedCallbacks": counts["callbacks_failed"],
    }


def growing(values: Mapping[str, int]) -> Mapping[str, int]:
    """The values that never decrease, which the fleet's totals include."""
    return {name: value for name, value in values.items() if name not in _NOW}
