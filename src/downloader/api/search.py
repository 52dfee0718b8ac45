"""A search over all aggregations, for operators with thousands of aggregations.

The store can list aggregations only by their number of jobs. So a search reads all of them, and later
searches reuse the result for a short time. The aggregations on the page that is sent are read again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import trio

from downloader.errors import StoreUnavailable
from downloader.globs import Allows
from downloader.store import JobStore, StoreError
from downloader.wire import Aggregation, AggregationLoad

SEARCHED = 20_000
"""Most aggregations that are searched: the busiest of each shard of the store."""

PAGE_MAX = 100

AGE_FACTOR = 20
"""Cache aggregations for 20 times as long as a read took, so reading uses at most 5% of the time."""

AGE_MAX_S = 3.0
"""Longest time for which aggregations are cached, so that a slow read does not make results old."""

SORTS: Mapping[str, Callable[[AggregationLoad], Any]] = {
    "aggr_id": lambda load: load.aggr_id.casefold(),
    "in_flight": lambda load: load.in_flight,
    "limit": lambda load: load.limit,
    "pending": lambda load: load.pending,
    "state": lambda load: (load.paused, load.cooling_until is not None),
    "work": lambda load: load.in_flight + load.pending,
}
"""Sort keys by name; with a `-` in front of the name the largest come first."""

BUSIEST = "-work"


class Aggregations:
    """Searches the aggregations of one store, with a cache."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._loads: Sequence[AggregationLoad] = ()
        """The busiest first. Sorting is stable, so aggregations with equal sort keys keep this order."""
        self._error: StoreError | None = None
        """The error of the last read; `None` after a success."""
        self._keep_until = -inf
        self._reading = trio.Lock()

    async def find(
        self, allows: Allows, *, text: str, sort: str, skip: int, count: int
    ) -> tuple[Sequence[Aggregation], int]:
        """One page of the matching aggregations that the caller may see, and the number of all matches.

        `text`: a part of the name, in any case. `skip`: the number of matches before the page.
        """
        text = text.casefold()
        matching = [
            load for load in await self._newest() if text in load.aggr_id.casefold() and allows(load.aggr_id)
        ]
        if sort != BUSIEST:
            matching.sort(key=SORTS[sort.removeprefix("-")], reverse=sort.startswith("-"))
        names = [load.aggr_id for load in matching[skip : skip + count]]
        described = {row.aggr_id: row for row in await self._store.described(names)}
        return [described[name] for name in names if name in described], len(matching)

    async def _newest(self) -> Sequence[AggregationLoad]:
        """All aggregations; read from the store if the cached aggregations are too old.

        Errors are cached too: otherwise requests that wait for the lock would time out one after another.
        """
        async with self._reading:
            begun = trio.current_time()
            if begun >= self._keep_until:
                try:
                    loads = await self._store.loads(SEARCHED)
                    self._loads, self._error = sorted(loads, key=_by_work), None
                except StoreError as error:
                    self._error = error
                now = trio.current_time()
                self._keep_until = now + min(AGE_MAX_S, AGE_FACTOR * (now - begun))
        if self._error is not None:
            raise StoreUnavailable(str(self._error)) from self._error
        return self._loads


def _by_work(load: AggregationLoad) -> tuple[int, str]:
    return -load.in_flight - load.pending, load.aggr_id
