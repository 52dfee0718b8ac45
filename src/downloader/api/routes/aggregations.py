"""Routes that show and change aggregations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from math import inf
from typing import Annotated, Any

import trio
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from quart import request
from quart_trio import QuartTrio
from werkzeug.datastructures import MultiDict
from werkzeug.routing import PathConverter

from downloader.api.answers import AggregationAnswer, AggregationsAnswer
from downloader.api.deps import ApiDeps
from downloader.api.fields import MAX_INT, Delay, Integer, Rate
from downloader.api.globs import Allows
from downloader.api.json import parse_object
from downloader.api.parse import MAX_NAME_CHARS, MAX_WARNINGS, refusal
from downloader.api.problems import Problem, Refused
from downloader.api.routes.jobs import bad_query, next_page, visible_aggregations
from downloader.api.views import rfc3339
from downloader.errors import StoreUnavailable
from downloader.net import redact_url
from downloader.store import Aggregation, AggregationLoad, JobStore, StoreError

PAGE = 100
"""About how many aggregations a page has; reading them takes about a millisecond of the store's time."""


class AggregationName(PathConverter):
    """The rest of a path: a name may have slashes, also at its start."""

    regex = ".*"
    part_isolating = False


class AggregationPatch(BaseModel):
    """The fields that an operator may change. Unknown fields are refused, because they have no effect."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    limit: Annotated[Integer, Field(ge=1, le=MAX_INT)] | None = None
    rate: Rate | None = None
    delay: Delay | None = None
    paused: bool | None = None


def add_aggregations(app: QuartTrio, deps: ApiDeps) -> None:
    """`GET /aggregations`, `GET` and `PATCH /aggregations/<aggr_id>`."""
    app.url_map.converters["aggregation"] = AggregationName
    searched = Aggregations(deps.store)

    @app.get("/aggregations")
    async def list_aggregations() -> tuple[AggregationsAnswer, int, dict[str, str]]:
        search = Search.of(request.args)
        if search is not None:
            found = await searched.find(search, visible_aggregations())
            rows = [_view(each) for each in found.aggregations]
            answer: AggregationsAnswer = {"aggregations": rows, "cursor": found.cursor, "total": found.total}
            return answer, HTTPStatus.OK, next_page("/aggregations", found.cursor)
        try:
            page = await deps.store.aggregations(request.args.get("cursor", ""), PAGE)
        except ValueError:
            raise Refused(bad_query("cursor", "must be one from an earlier answer.")) from None
        allows = visible_aggregations()
        rows = [_view(each) for each in page.aggregations if allows(each.aggr_id)]
        rows.sort(key=lambda row: (-row["in_flight"] - row["pending"], row["aggr_id"]))
        answer = {"aggregations": rows, "cursor": page.cursor}
        return answer, HTTPStatus.OK, next_page("/aggregations", page.cursor)

    @app.get("/aggregations/<aggregation:aggr_id>")
    async def aggregation(aggr_id: str) -> AggregationAnswer:
        visible = visible_aggregations()(aggr_id)
        return _known(await deps.store.aggregation(aggr_id) if visible else None)

    @app.patch("/aggregations/<aggregation:aggr_id>")
    async def adjust(aggr_id: str) -> AggregationAnswer:
        changes = _changes(await request.data)
        visible = visible_aggregations()(aggr_id)
        return _known(await deps.store.adjust(aggr_id, changes) if visible else None)


def _changes(body: bytes) -> Mapping[str, Any]:
    """The members of a merge patch (RFC 7396), checked.

    Raises:
        Refused: 400 or 422.
    """
    members, fields = parse_object(body), AggregationPatch.model_fields
    known = {name: value for name, value in members.items() if name in fields}
    # No more are looked at than are answered: a body may have tens of thousands, at 0.06 ms each.
    unknown = islice((name[:MAX_NAME_CHARS] for name in members if name not in fields), MAX_WARNINGS)
    try:
        patch = AggregationPatch.model_validate(known | dict.fromkeys(unknown))
    except ValidationError as error:
        raise refusal(error) from None
    return patch.model_dump(exclude_unset=True)


def _known(found: Aggregation | None) -> AggregationAnswer:
    if found is None:
        raise Refused(_UNKNOWN)
    return _view(found)


def _view(found: Aggregation) -> AggregationAnswer:
    return {
        "aggr_id": found.aggr_id,
        "limit": found.limit,
        "rate": found.rate,
        "delay": found.delay,
        "overridden": dict(found.asked),
        "proxy": redact_url(found.proxy) if found.proxy else "",
        "paused": found.paused,
        "in_flight": found.in_flight,
        "pending": found.pending,
        "cooling_until": rfc3339(found.cooling_until_ms),
        "cooling_reason": found.cooling_reason,
        "next_due_at": rfc3339(found.next_due_ms),
    }


_UNKNOWN = Problem(
    HTTPStatus.NOT_FOUND,
    "unknown_aggregation",
    detail="There is no aggregation of this name with unfinished downloads.",
)


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
