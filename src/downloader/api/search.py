"""Searches among all aggregations, and the number of jobs of each, for operators with thousands of them.

The store can list aggregations only by their number of jobs. So a search reads all of them, and later
searches reuse the result for a short time. The aggregations on the page that is sent are read again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from typing import Any, Generic, TypeVar

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

QUICK_READ_S = 0.1
"""A read of a small fleet takes less than this, and is not cached."""

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
"""Sort keys by name; a `-` in front of the name sorts in descending order."""

BUSIEST = "-work"


T = TypeVar("T")


class Cached(Generic[T]):
    """Caches the result of a slow read; requests that come during a read get the result of that read."""

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._result: T
        self._error: StoreError | None = None
        """The error of the last read; `None` after a success."""
        self._keep_until = -inf
        self._reading = trio.Lock()

    async def get(self) -> T:
        """The result, read from the store if the cached result is too old.

        Errors are cached too: otherwise requests that wait for the lock would time out one after another.

        Raises:
            StoreUnavailable: the last read failed.
        """
        asked = trio.current_time()
        async with self._reading:
            begun = trio.current_time()
            if asked >= self._keep_until:
                try:
                    self._result, self._error = await self._read(), None
                except StoreError as error:
                    self._error = error
                now = trio.current_time()
                took_s = now - begun
                self._keep_until = now + min(AGE_MAX_S, AGE_FACTOR * took_s) if took_s > QUICK_READ_S else now
        if self._error is not None:
            raise StoreUnavailable(str(self._error)) from self._error
        return self._result


class Aggregations:
    """Reads of all aggregations of one store."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._loads = Cached(self._busiest)
        self.sizes = Cached(self._sizes)
        """The number of pending jobs by aggregation, the largest first."""

    async def _busiest(self) -> Sequence[AggregationLoad]:
        """The busiest first. Sorting is stable, so aggregations with equal sort keys keep this order."""
        return sorted(await self._store.loads(SEARCHED), key=_by_work)

    async def _sizes(self) -> Mapping[str, int]:
        return await self._store.aggregation_sizes()

    async def find(
        self, allows: Allows, *, text: str, sort: str, skip: int, count: int
    ) -> tuple[Sequence[Aggregation], int]:
        """One page of the matching aggregations that the caller may see, and the number of all matches.

        `text`: a part of the name, in any case. `skip`: the number of matches before the page.
        """
        text = text.casefold()
        loads = await self._loads.get()
        matching = [load for load in loads if text in load.aggr_id.casefold() and allows(load.aggr_id)]
        if sort != BUSIEST:
            matching.sort(key=SORTS[sort.removeprefix("-")], reverse=sort.startswith("-"))
        names = [load.aggr_id for load in matching[skip : skip + count]]
        described = {row.aggr_id: row for row in await self._store.described(names)}
        return [described[name] for name in names if name in described], len(matching)


def _by_work(load: AggregationLoad) -> tuple[int, str]:
    return -load.in_flight - load.pending, load.aggr_id
