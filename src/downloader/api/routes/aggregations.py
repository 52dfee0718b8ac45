"""Routes that show and change aggregations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from quart import request

from downloader.api.answers import AggregationAnswer, AggregationsAnswer, SizeAnswer
from downloader.api.auth import visible_aggregations
from downloader.api.deps import Context
from downloader.api.fields import MAX_INT, Delay, Integer, Rate
from downloader.api.json import parse_object
from downloader.api.parse import MAX_NAME_CHARS, MAX_WARNINGS, refusal
from downloader.api.problems import Problem, Refused
from downloader.api.routing import BAD_QUERY, CURSOR, Parameter, ResponseSpec, bad_query, next_page, route
from downloader.api.search import BUSIEST, PAGE_MAX, SORTS, Aggregations
from downloader.api.views import rfc3339
from downloader.net import redact_url
from downloader.store import Aggregation

PAGE = 100
"""About how many aggregations a page has; reading them takes about a millisecond of the store's time."""


class AggregationPatch(BaseModel):
    """The fields that an operator may change. Unknown fields are refused, because they have no effect."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)

    limit: Annotated[Integer, Field(ge=1, le=MAX_INT)] | None = None
    rate: Rate | None = None
    delay: Delay | None = None
    paused: bool | None = None


_NO_AGGREGATION = "there is no such aggregation with unfinished downloads"

_COUNT = f"must be from 1 to {PAGE_MAX}."


@route(
    "GET",
    "/aggregations",
    scope="read",
    parameters=[
        Parameter(name="q", description="Only those with this in their name, whatever the case."),
        Parameter(
            name="sort",
            description="What they are sorted by; with `-` in front the largest come first. By default"
            " `-work`, the busiest first.",
            schema={"type": "string", "enum": ["", *SORTS, *(f"-{name}" for name in SORTS)]},
        ),
        Parameter(
            name="count",
            description="With `q` or `sort`: how many a page has at the most.",
            schema={"type": "integer", "minimum": 1, "maximum": PAGE_MAX},
        ),
        CURSOR,
    ],
    responses={
        HTTPStatus.OK: ResponseSpec(
            "A page.", AggregationsAnswer, headers={"Link": "The next page (RFC 8288)."}
        )
    },
    problems={HTTPStatus.UNPROCESSABLE_ENTITY: BAD_QUERY},
)
async def list_aggregations(context: Context) -> tuple[AggregationsAnswer, dict[str, str]]:
    """List the aggregations with unfinished downloads.

    With `q` or `sort` they are searched and sorted, and `total` says how many match.
    """
    if "q" in request.args or "sort" in request.args:
        answer = await _search(context.search)
    else:
        try:
            page = await context.store.aggregations(request.args.get("cursor", ""), PAGE)
        except ValueError:
            raise bad_query("cursor", "must be one from an earlier answer.") from None
        allows = visible_aggregations()
        rows = [_view(row) for row in page.aggregations if allows(row.aggr_id)]
        rows.sort(key=lambda row: (-row["in_flight"] - row["pending"], row["aggr_id"]))
        answer = {"aggregations": rows, "cursor": page.cursor}
    return answer, next_page("/aggregations", answer["cursor"])


async def _search(aggregations: Aggregations) -> AggregationsAnswer:
    """The page that the request's query searches for.

    Raises:
        Refused: 422.
    """
    sort = request.args.get("sort", "") or BUSIEST
    if sort.removeprefix("-") not in SORTS:
        raise bad_query("sort", f"must be one of {', '.join(SORTS)}; descending with - in front.")
    skip = _number("cursor", 0, "must be one from an earlier answer.")
    count = _number("count", PAGE_MAX, _COUNT)
    if not 1 <= count <= PAGE_MAX:
        raise bad_query("count", _COUNT)
    page, total = await aggregations.find(
        visible_aggregations(), text=request.args.get("q", ""), sort=sort, skip=skip, count=count
    )
    cursor = str(skip + count) if skip + count < total else ""
    return {"aggregations": [_view(row) for row in page], "cursor": cursor, "total": total}


def _number(name: str, default: int, detail: str) -> int:
    text = request.args.get(name, "")
    if text and re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise bad_query(name, detail)
    return int(text) if text else default


@route(
    "GET",
    "/aggregations/<aggregation:aggr_id>",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("The aggregation.", AggregationAnswer)},
    problems={HTTPStatus.NOT_FOUND: _NO_AGGREGATION},
)
async def show(context: Context, aggr_id: str) -> AggregationAnswer:
    """Show one aggregation."""
    visible = visible_aggregations()(aggr_id)
    return _known(await context.store.aggregation(aggr_id) if visible else None)


@route(
    "PATCH",
    "/aggregations/<aggregation:aggr_id>",
    scope="admin",
    body=AggregationPatch,
    responses={HTTPStatus.OK: ResponseSpec("The aggregation after the change.", AggregationAnswer)},
    problems={
        HTTPStatus.BAD_REQUEST: "the body is not a JSON object",
        HTTPStatus.NOT_FOUND: _NO_AGGREGATION,
        HTTPStatus.UNPROCESSABLE_ENTITY: "a field is at fault or unknown",
    },
)
async def adjust(context: Context, aggr_id: str) -> AggregationAnswer:
    """Change an aggregation.

    At once over the fleet. A merge patch (RFC 7396): `null` undoes what was set.
    """
    changes = _changes(await request.data)
    visible = visible_aggregations()(aggr_id)
    return _known(await context.store.adjust(aggr_id, changes) if visible else None)


@route(
    "GET",
    "/dashboard/aggregations",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("The largest first.", list[SizeAnswer])},
)
async def sizes(context: Context) -> list[SizeAnswer]:
    """Aggregations that have work."""
    allowed = visible_aggregations()
    pending = await context.store.aggregation_sizes()
    return [{"name": f"jobs:{name}", "size": size} for name, size in pending.items() if allowed(name)]


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
