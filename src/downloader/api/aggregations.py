"""Routes that show and change aggregations."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from quart import request
from quart_trio import QuartTrio
from werkzeug.routing import PathConverter

from downloader.api.answers import AggregationAnswer, AggregationsAnswer
from downloader.api.deps import ApiDeps
from downloader.api.fields import MAX_INT, Delay, Integer, Rate
from downloader.api.jobs import visible_aggregations
from downloader.api.json import parse_object
from downloader.api.listed import bad_query, next_page
from downloader.api.parse import MAX_NAME_CHARS, MAX_WARNINGS, refusal
from downloader.api.problems import Problem, Refused
from downloader.api.search import Aggregations, Search
from downloader.api.views import rfc3339
from downloader.net import redact_url
from downloader.store import Aggregation

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
