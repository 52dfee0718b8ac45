"""`GET /aggregations` with `q` or `sort`: searched and sorted, for operators with thousands of aggregations.

The store can list aggregations only by their number of jobs. So all of them are read, and used for further
requests for some time if there are many; what is answered about those on the page is of now.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import trio
from werkzeug.datastructures import MultiDict

from downloader.api.globs import Allows
from downloader.api.listed import bad_query
from downloader.api.problems import Refused
from downloader.errors import StoreUnavailable
from downloader.store import Aggregation, AggregationLoad, JobStore, StoreError

SEARCHED = 20_000
"""Most aggregations that are searched, of each shard of the store the busiest."""

PAGE_MAX = 100

AGE_FACTOR = 20
"""How long they are kept, as a multiple of the time for reading them: a twentieth of the time is reading."""

AGE_MAX_S = 3.0
"""How long they are kept at the most: a store that is slow for a moment must not make them old."""

SORTS: Mapping[str, Callable[[AggregationLoad], Any]] = {
    "aggr_id": lambda load: load.aggr_id.casefold(),
    "in_flight": lambda load: load.in_flight,
    "limit": lambda load: load.limit,
    "pending": lambda load: load.pending,
    "state": lambda load: (load.paused, load.cooling_until_ms is not None),
    "work": lambda load: load.in_flight + load.pending,
}
"""What can be sorted by; with a `-` in front the largest come first."""

BUSIEST = "-work"


_COUNT = f"must be from 1 to {PAGE_MAX}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """The parameters of a request."""

    text: str
    """In any place of the name, whatever the case."""
    sort: str
    skip: int
    count: int

    @classmethod
    def of(cls, query: MultiDict[str, str]) -> Search | None:
        """Read the parameters; `None` if neither `q` nor `sort` is among them.

        Raises:
            Refused: 422.
        """
        if "q" not in query and "sort" not in query:
            return None
        sort, count, cursor = (query.get(name, "") for name in ("sort", "count", "cursor"))
        if sort.removeprefix("-") not in ("", *SORTS):
            raise Refused(
                bad_query("sort", f"must be one of {', '.join(SORTS)}; descending with - in front.")
            )
        found = cls(
            text=query.get("q", "").casefold(),
            sort=sort or BUSIEST,
            skip=_number(cursor, 0, "cursor", "must be one from an earlier answer."),
            count=_number(count, PAGE_MAX, "count", _COUNT),
        )
        if not 1 <= found.count <= PAGE_MAX:
            raise Refused(bad_query("count", _COUNT))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A page of what was searched for."""

    aggregations: Sequence[Aggregation]
    total: int
    """How many match, on all pages."""
    cursor: str


class Aggregations:
    """The aggregations of one store, as one process searches them."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._loads: Sequence[AggregationLoad] = ()
        """The busiest first: this order decides among those that are equal in another."""
        self._error: StoreError | None = None
        """Of the last reading."""
        self._keep_until = -inf
        self._reading = trio.Lock()

    async def find(self, search: Search, allows: Allows) -> Found:
        """A page of the aggregations that match and that the caller may see."""
        matching = [
            load
            for load in await self._newest()
            if (not search.text or search.text in load.aggr_id.casefold()) and allows(load.aggr_id)
        ]
        if search.sort != BUSIEST:
            matching.sort(key=SORTS[search.sort.removeprefix("-")], reverse=search.sort.startswith("-"))
        end = search.skip + search.count
        names = [load.aggr_id for load in matching[search.skip : end]]
        place = {name: index for index, name in enumerate(names)}
        page = sorted(await self._store.described(names), key=lambda each: place[each.aggr_id])
        return Found(aggregations=page, total=len(matching), cursor=str(end) if end < len(matching) else "")

    async def _newest(self) -> Sequence[AggregationLoad]:
        """All aggregations, read again if they are too old.

        An error is kept as long: otherwise each waiting request would wait for an error of its own.
        """
        async with self._reading:
            begun = trio.current_time()
            if begun >= self._keep_until:
                try:
                    found = await self._store.loads(SEARCHED)
                    self._loads, self._error = sorted(found, key=_by_work), None
                except StoreError as error:
                    self._error = error
                now = trio.current_time()
                self._keep_until = now + min(AGE_MAX_S, AGE_FACTOR * (now - begun))
        if self._error is not None:
            raise StoreUnavailable(str(self._error)) from self._error
        return self._loads


def _by_work(load: AggregationLoad) -> tuple[int, str]:
    return -load.in_flight - load.pending, load.aggr_id


def _number(text: str, default: int, field: str, detail: str) -> int:
    if not text:
        return default
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise Refused(bad_query(field, detail))
    return int(text)
