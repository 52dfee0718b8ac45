"""Routes that show and change aggregations."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any
from urllib.parse import quote

import trio
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, WithJsonSchema
from quart import request

from downloader.api.auth import audit, check_sees_all, visible_aggregations
from downloader.api.deps import Context
from downloader.api.json import parse_object
from downloader.api.parse import MAX_NAME_CHARS, MAX_WARNINGS, refusal
from downloader.api.problems import refused
from downloader.api.routes.jobs import callback_of_cancelled
from downloader.api.routing import Paged, ResponseSpec, bad_query, next_page, route
from downloader.api.search import BUSIEST, PAGE_MAX, SORTS, Aggregations
from downloader.api.views import blocked, with_state
from downloader.model import MAX_AGGREGATION_CHARS, JobSpec
from downloader.store import Changed, JobStore, PartlyChanged
from downloader.wire import (
    Aggregation,
    AggregationChanges,
    AggregationPage,
    AggregationSize,
    AllAggregations,
    CancelledJobs,
)

PAGE = 100
"""About how many aggregations a page has; reading a page takes about a millisecond of the store's time."""


CANCELLED_AT_ONCE = 200
"""Jobs that one call of the store cancels: a few milliseconds of the store's time."""

CANCEL_S = 5.0
"""Time after which a request to cancel begins no further batch; clients wait longer for a response."""

_CHANGES = TypeAdapter(AggregationChanges)


def _sort_key(sort: str) -> str:
    if sort.removeprefix("-") not in SORTS:
        raise ValueError(f"must be one of {', '.join(SORTS)}; descending with - in front")
    return sort


Sort = Annotated[
    str,
    AfterValidator(_sort_key),
    WithJsonSchema({"type": "string", "enum": [*SORTS, *(f"-{name}" for name in SORTS)]}),
]


class AggregationQuery(Paged):
    """The parameters of `GET /aggregations`."""

    q: str = ""
    """Only those with this in their name, whatever the case."""
    sort: Sort = BUSIEST
    """The sort key; a `-` in front sorts in descending order."""
    count: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_MAX
    """Most aggregations on a page, with `q` or `sort`."""


@route(
    "GET",
    "/aggregations",
    scope="read",
    query=AggregationQuery,
    responses={
        HTTPStatus.OK: ResponseSpec("A page.", AggregationPage, headers={"Link": "The next page (RFC 8288)."})
    },
)
async def list_aggregations(
    context: Context, query: AggregationQuery
) -> tuple[AggregationPage, dict[str, str]]:
    """List the aggregations with unfinished downloads.

    With `q` or `sort` they are searched and sorted, and `total` says how many match.
    """
    try:
        if "q" in request.args or "sort" in request.args:
            page = await _search(context.search, query)
        else:
            page = await _list(context.store, query.cursor)
    except ValueError:
        raise bad_query("cursor", "must be one from an earlier answer.") from None
    reason = await _blocked(context.store)
    rows = [with_state(row, reason, datetime.now(UTC)) for row in page.aggregations]
    page = page.model_copy(update={"aggregations": rows, "paused": reason == "paused"})
    return page, next_page("/aggregations", page.cursor)


async def _list(store: JobStore, cursor: str) -> AggregationPage:
    """A page of all aggregations. Raises `ValueError` for another cursor than one of an earlier page."""
    listed, allows = await store.aggregations(cursor, PAGE), visible_aggregations()
    rows = [row for row in listed.aggregations if allows(row.aggr_id)]
    rows.sort(key=lambda row: (-row.in_flight - row.pending, row.aggr_id))
    return AggregationPage(aggregations=rows, cursor=listed.cursor)


async def _search(aggregations: Aggregations, query: AggregationQuery) -> AggregationPage:
    """The page that a query searches for. Raises as `_list`."""
    skip = int(query.cursor or "0")
    if skip < 0:
        raise ValueError
    rows, total = await aggregations.find(
        visible_aggregations(), text=query.q, sort=query.sort, skip=skip, count=query.count
    )
    end = skip + query.count
    return AggregationPage(aggregations=rows, cursor=str(end) if end < total else "", total=total)


@route(
    "GET",
    "/aggregations/<aggregation:aggr_id>",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("The aggregation.", Aggregation)},
    problems=["unknown_aggregation"],
)
async def show(context: Context, aggr_id: str) -> Aggregation:
    """Show one aggregation."""
    visible = visible_aggregations()(aggr_id)
    return await _known(context, await context.store.aggregation(aggr_id) if visible else None)


@route(
    "PATCH",
    "/aggregations",
    scope="admin",
    body=AllAggregations,
    responses={HTTPStatus.OK: ResponseSpec("The pause after the change.", AllAggregations)},
)
async def pause_all(context: Context) -> AllAggregations:
    """Pause all aggregations.

    Applies to the fleet at once, and to later aggregations, until `paused` is set to `false`. Pauses of
    single aggregations do not change. A token needs all aggregations.
    """
    try:
        change = AllAggregations.model_validate(parse_object(await request.data))
    except ValidationError as error:
        raise refusal(error) from None
    check_sees_all()
    try:
        await context.store.pause_all(paused=change.paused)
    except PartlyChanged as error:
        await audit(context.store, "pause_all", paused=change.paused, partly=str(error))
        detail = "Only part of the store has answered and made the change. Repeat the request."
        raise refused("store_unavailable", detail) from error
    await audit(context.store, "pause_all", paused=change.paused)
    return change


@route(
    "PATCH",
    "/aggregations/<aggregation:aggr_id>",
    scope="admin",
    body=AggregationChanges,
    responses={HTTPStatus.OK: ResponseSpec("The aggregation after the change.", Aggregation)},
    problems=["unknown_aggregation"],
)
async def adjust(context: Context, aggr_id: str) -> Aggregation:
    """Change an aggregation.

    Applies to the fleet at once. The body is a merge patch (RFC 7396): `null` clears a value. A value stays
    until then, also before the aggregation's first job and after its last job.
    """
    changes = _changes(await request.data)
    visible = can_be_named(aggr_id) and visible_aggregations()(aggr_id)
    aggregation = await context.store.adjust(aggr_id, changes) if visible else None
    if aggregation is not None:
        await audit(context.store, "adjust", aggr_id=aggr_id, changes=changes)
    return await _known(context, aggregation)


@route(
    "DELETE",
    "/aggregations/<aggregation:aggr_id>/jobs",
    scope="submit",
    responses={HTTPStatus.ACCEPTED: ResponseSpec("The number of cancelled jobs.", CancelledJobs)},
    problems=["unknown_aggregation", "encrypted"],
)
async def cancel_jobs(context: Context, aggr_id: str) -> CancelledJobs:
    """Cancel all jobs of an aggregation.

    Cancels pending and running jobs in batches, for some seconds. Repeat the request until the response is
    `complete`. Each callback reports the `error_code` `cancelled`.
    """
    if not (can_be_named(aggr_id) and visible_aggregations()(aggr_id)):
        raise refused("unknown_aggregation")
    store = context.store
    return await cancel_batches(
        context, lambda _: store.unfinished(aggr_id, CANCELLED_AT_ONCE), aggr_id=aggr_id
    )


async def cancel_batches(
    context: Context, read: Callable[[Any], Awaitable[tuple[Sequence[JobSpec], Any]]], **of: str
) -> CancelledJobs:
    """Cancel the jobs of batches, for some seconds. `of` names for the audit what the jobs belong to.

    `read` returns a batch and the cursor of the next one, with which it is called; false at the end.
    """
    deps, ends, allows = context.deps, trio.current_time() + CANCEL_S, visible_aggregations()
    cancelled, cursor = 0, None
    try:
        while True:  # one batch at least
            specs, cursor = await read(cursor)
            jobs = [(spec, callback_of_cancelled(spec, deps)) for spec in specs if allows(spec.aggr_id)]
            if jobs:
                results = await context.store.cancel_all(jobs, deps.keep_s)
                cancelled += results.count(Changed.DONE)
            if not cursor or trio.current_time() >= ends:
                return CancelledJobs(cancelled=cancelled, complete=not cursor)
    finally:
        if cancelled:  # perhaps before a batch that failed
            await audit(context.store, "cancel_jobs", **of, count=cancelled)


@route(
    "GET",
    "/dashboard/aggregations",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("The largest first.", list[AggregationSize])},
)
async def sizes(context: Context) -> list[AggregationSize]:
    """List aggregations with the number of pending jobs."""
    allowed = visible_aggregations()
    pending = await context.search.sizes.get()
    return [
        AggregationSize(name=f"jobs:{name}", size=size) for name, size in pending.items() if allowed(name)
    ]


def _changes(body: bytes) -> AggregationChanges:
    """The members of a merge patch (RFC 7396), checked.

    Raises:
        Refused: 400 or 422.
    """
    members, fields = parse_object(body), AggregationChanges.__annotations__
    changes = {name: value for name, value in members.items() if name in fields}
    # Only names in the response are checked: a body may have tens of thousands, at 0.06 ms each.
    unknown = islice((name[:MAX_NAME_CHARS] for name in members if name not in fields), MAX_WARNINGS)
    try:
        return _CHANGES.validate_python(changes | dict.fromkeys(unknown))
    except ValidationError as error:
        raise refusal(error) from None


def can_be_named(aggr_id: str) -> bool:
    """Whether a job can have this name. Bytes that are not UTF-8 have become U+FFFD in the name."""
    encoded = quote(aggr_id, safe="").encode()
    is_unicode = "\ufffd" not in aggr_id or encoded.lower() in request.scope["raw_path"].lower()
    return is_unicode and aggr_id.isprintable() and 0 < len(aggr_id) <= MAX_AGGREGATION_CHARS


async def _known(context: Context, aggregation: Aggregation | None) -> Aggregation:
    if aggregation is None:
        raise refused("unknown_aggregation")
    return with_state(aggregation, await _blocked(context.store), datetime.now(UTC))


async def _blocked(store: JobStore) -> str:
    return blocked(await store.reports("processor"), all_paused=await store.all_paused())
