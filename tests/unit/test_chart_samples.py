"""Rates, latencies and failures between two readings of the fleet's totals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf
from typing import Any, cast

import pytest

from downloader.api.history import KEPT, WINDOW, History, failures, latencies, quantile, rates
from downloader.errors import StoreUnavailable
from downloader.store import JobStore

BEFORE = {
    "processor": {"downloads_succeeded": 100, "downloads_failed|dns": 5, "bytes": 1000},
    "notifier": {},
}
AFTER = {
    "processor": {
        "downloads_succeeded": 130,
        "downloads_failed|dns": 8,
        "downloads_failed|tls": 2,
        "bytes": 61_000,
        "download_seconds_bucket|0.1": 8,
        "download_seconds_bucket|1": 2,
        "download_seconds_sum": 1_700_000,
    },
    "notifier": {
        "callbacks_delivered|http": 20,
        "callbacks_delivered|kafka": 10,
        "callbacks_failed|http": 4,
        "delivery_seconds_bucket|http|0.01": 1,
        "delivery_seconds_bucket|kafka|0.01": 1,
    },
}


class Totals:
    """A store with certain totals."""

    def __init__(self) -> None:
        self.now: Mapping[str, Mapping[str, int]] | None = BEFORE

    async def totals(self, role: str) -> Mapping[str, int]:
        if self.now is None:
            raise StoreUnavailable("it sleeps")
        return self.now[role]


def samples(history: History, number: int = 0) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", json.loads(history.since(number) or b"[]"))


def test_rates_failures_and_latencies_come_from_the_growth_of_counters() -> None:
    assert rates(BEFORE, AFTER, 10) == {"succeeded": 3, "failed": 0.5, "bytes": 6000, "delivered": 3}
    assert failures(BEFORE, AFTER) == {"dns": 3, "tls": 2, "callback": 4}
    found = latencies(BEFORE, AFTER)
    assert found["download"] == [0.0625, 0.775]
    assert found["delivery"] == [0.005, 0.0095]
    assert found["queue_wait"] is None


def test_counts_of_an_emptied_store_are_growth() -> None:
    assert rates(AFTER, BEFORE, 10)["succeeded"] == 10


@pytest.mark.parametrize(
    ("counts", "which", "expected"),
    [
        ({1.0: 4}, 0.5, 0.5),
        ({1.0: 1, 2.0: 1}, 1.0, 2.0),
        ({1.0: 0, 2.0: 2}, 0.5, 1.5),
        ({1.0: 1, inf: 9}, 0.95, 1.0),
    ],
)
def test_quantiles(counts: dict[float, int], which: float, expected: float) -> None:
    assert quantile(counts, which) == expected


async def test_samples_are_numbered_and_bounded() -> None:
    store = Totals()
    history = History(cast("JobStore", store))
    await history.sample()
    assert (history.newest, history.since(0)) == (0, b"")
    store.now = AFTER
    await history.sample()
    [first] = samples(history)
    assert first["failures"] == {"dns": 3, "tls": 2, "callback": 4}
    await history.sample()
    [second] = samples(history, 1)
    assert (second["failures"], second["rates"]["succeeded"] > 0) == ({}, True), "rates are of a longer time"
    for _ in range(WINDOW):
        await history.sample()
    assert samples(history)[-1]["rates"]["succeeded"] == 0
    for _ in range(KEPT):
        await history.sample()
    assert len(samples(history)) == KEPT
    assert history.since(history.newest) == b""
    assert len(history.since(0)) < 40_000


async def test_an_unreachable_store_leaves_a_gap() -> None:
    store = Totals()
    history = History(cast("JobStore", store))
    await history.sample()
    store.now = None
    await history.sample()
    assert [set(each) for each in samples(history)] == [{"at_ms"}]
    store.now = AFTER
    await history.sample()
    assert history.newest == 1, "nothing is told of the time without numbers"
    await history.sample()
    assert samples(history)[-1]["rates"]["succeeded"] == 0
