"""Rates, latencies and failures of the last minutes, for the charts of the web page.

Each API process reads the fleet's totals every few seconds and keeps what has changed between them, so this
history begins when the process starts. The backlog of the last day is in the store.
"""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from math import inf, isinf
from typing import Any

import trio

from downloader.observe import BUCKET, SEPARATOR, by_name
from downloader.store import POINT_MS, JobStore, StoreError
from downloader.wire import BacklogPoint

WINDOW = 3
"""Samples that rates and latencies span: between two samples an instance may report twice, or not at all."""

KEPT = 180
"""Most samples that are kept: a quarter of an hour."""

Totals = Mapping[str, Mapping[str, int]]
"""By role, the counts by series."""

RATES = {
    "succeeded": ("processor", "downloads_succeeded"),
    "failed": ("processor", "downloads_failed"),
    "bytes": ("processor", "bytes"),
    "delivered": ("notifier", "callbacks_delivered"),
}
"""Role and counter of each rate."""

ATTEMPTS = ("downloads_succeeded", "downloads_failed", "downloads_retried", "downloads_throttled")
"""Counters of attempts that have ended."""

LATENCIES = {
    "queue_wait": ("processor", "queue_wait_seconds"),
    "download": ("processor", "download_seconds"),
    "delivery": ("notifier", "delivery_seconds"),
}
"""Role and histogram of each latency."""

QUANTILES = (0.5, 0.95)

CALLBACK = "callback"
"""Key of the callbacks that were given up, beside the error codes of failed downloads."""

_DIGITS = 4
"""Significant digits of the numbers that are sent."""


class History:
    """The samples of one process, numbered from 1."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._read: deque[tuple[float, Totals]] = deque(maxlen=WINDOW + 1)
        self._samples: deque[Mapping[str, Any]] = deque(maxlen=KEPT)
        self.newest = 0
        """Number of the newest sample, 0 while there is none."""
        self.moved_at = inf
        """Trio time at which a download last ended an attempt or received bytes, or sampling began."""
        self._kept = 0
        """The five minutes of the last point of the backlog that this process has added."""

    async def sample(self) -> None:
        """Read the totals, and add a sample unless this is the first call.

        A sample has no numbers if the store does not answer.
        """
        try:
            totals = {role: await self._store.totals(role) for role in ("processor", "notifier")}
        except StoreError:
            self._read.clear()
            self._add({"at_ms": int(time.time() * 1000)})
            return
        if not self._read:
            self.moved_at = trio.current_time()
        self._read.append((trio.current_time(), totals))
        if len(self._read) > 1:
            (begun, before), (last, previous), (now, newest) = self._read[0], self._read[-2], self._read[-1]
            ended = by_name(_growth(previous, newest, "processor"))
            if any(ended.get(name) for name in ATTEMPTS):
                self.moved_at = now
            self._add(
                {
                    "at_ms": int(time.time() * 1000),
                    "rates": rates(before, newest, now - begun),
                    "latencies": latencies(before, newest),
                    "failures": failures(previous, newest),
                    "step_s": round(now - last, 1),
                }
            )

    async def keep_backlog(self) -> None:
        """Add a point to the store's history of the backlog, unless this process has added one just now.

        Every API process adds the point of the same five minutes, and the last one stays.
        """
        now = int(time.time() * 1000) // POINT_MS
        if now == self._kept or not self._read:
            return
        with suppress(StoreError):
            backlog = await self._store.backlog(1)
            ended = by_name(self._read[-1][1]["processor"])
            point = BacklogPoint(
                at=datetime.fromtimestamp(backlog.now_ms / 1000, UTC),
                downloads=backlog.downloads.pending,
                callbacks=backlog.callbacks.pending,
                succeeded=ended.get("downloads_succeeded", 0),
                failed=ended.get("downloads_failed", 0),
            )
            await self._store.note_backlog(point)
            self._kept = now

    def since(self, number: int) -> bytes:
        """The samples after that number, as a line of JSON; empty without such samples."""
        count = min(self.newest - number, len(self._samples))
        return json.dumps(list(self._samples)[-count:], separators=(",", ":")).encode() if count else b""

    def _add(self, sample: Mapping[str, Any]) -> None:
        self._samples.append(sample)
        self.newest += 1


def rates(before: Totals, after: Totals, seconds: float) -> dict[str, float]:
    """Growth per second, by the names of `RATES`."""
    grown = {role: by_name(_growth(before, after, role)) for role in after}
    return {name: _short(grown[role].get(counter, 0) / seconds) for name, (role, counter) in RATES.items()}


def latencies(before: Totals, after: Totals) -> dict[str, list[float] | None]:
    """`QUANTILES` in seconds, by the names of `LATENCIES`; `None` where nothing was measured."""
    seconds: dict[str, list[float] | None] = {}
    for name, (role, histogram) in LATENCIES.items():
        counts: Counter[float] = Counter()
        for series, count in _growth(before, after, role).items():
            first, *labels = series.split(SEPARATOR)
            if first == histogram + BUCKET:
                counts[float(labels[-1])] += count
        measured = counts.total() > 0
        seconds[name] = [_short(quantile(counts, which)) for which in QUANTILES] if measured else None
    return seconds


def failures(before: Totals, after: Totals) -> dict[str, int]:
    """Downloads that have failed for good, by error code, and callbacks that were given up."""
    failed: Counter[str] = Counter()
    for role, counter in (("processor", "downloads_failed"), ("notifier", "callbacks_failed")):
        for series, count in _growth(before, after, role).items():
            name, _, label = series.partition(SEPARATOR)
            if name == counter and count:
                failed[label if role == "processor" else CALLBACK] += count
    return dict(failed)


def quantile(counts: Mapping[float, int], which: float) -> float:
    """A quantile (0 to 1), as Prometheus estimates quantiles: values lie evenly within a bucket.

    `counts` has how many values are in each bucket, by its upper bound; they may not all be 0.
    """
    rank, lower = which * sum(counts.values()), 0.0
    for bound in sorted(counts):
        if rank <= counts[bound]:
            return lower if isinf(bound) else lower + (bound - lower) * rank / counts[bound]
        rank -= counts[bound]
        lower = bound
    return lower


def _growth(before: Totals, after: Totals, role: str) -> dict[str, int]:
    """Growth of each series. A series that has shrunk was emptied with the store and began again at 0."""
    earlier = before.get(role, {})
    pairs = ((series, count, earlier.get(series, 0)) for series, count in after[role].items())
    return {series: count - past if count >= past else count for series, count, past in pairs}


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
