"""The route that counts what has failed, by aggregation and reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from http import HTTPStatus

import trio

from downloader.api.deps import Context
from downloader.api.routes.jobs import SEARCH_S, AggregationFilter, visible_jobs
from downloader.api.routing import Flag, ResponseSpec, route
from downloader.model import Kind
from downloader.store import JobStore, Listed
from downloader.wire import FailureCount, FailureGroup, Failures

COUNTED_AT_ONCE = 500
"""Failed jobs that one call of the store counts: a few milliseconds of the store's time."""

COUNTED = 4 * COUNTED_AT_ONCE
"""Failed jobs of each kind that are counted unless all are asked for, so that an open page costs little."""

ROWS = 100
"""Most rows in a response, each with an aggregation and a reason."""

_NEVER = datetime.min.replace(tzinfo=UTC)


class FailureQuery(AggregationFilter):
    """The parameters of `GET /failures`."""

    all: Flag = False
    """Count all failed jobs, for at most a second. Otherwise only the newest 2000 downloads and the newest
    2000 callbacks are counted."""


@route(
    "GET",
    "/failures",
    scope="read",
    query=FailureQuery,
    responses={
        HTTPStatus.OK: ResponseSpec("The aggregations and reasons with the most jobs first.", Failures)
    },
)
async def failures(context: Context, query: FailureQuery) -> Failures:
    """Count failures by aggregation and reason.

    Counts downloads and callbacks that failed for good and can be retried.
    """
    rows, complete = await _count_by_reason(context.store, query)
    downloads, callbacks = ([row for row in rows if row.kind == kind.value] for kind in Kind)
    largest = sorted(rows, key=lambda row: (-row.jobs, row.aggr_id, row.kind, row.error))
    return Failures(
        groups=largest[:ROWS],
        more_groups=max(0, len(rows) - ROWS),
        downloads=_count(downloads),
        callbacks=_count(callbacks),
        complete=complete,
    )


async def _count_by_reason(store: JobStore, query: FailureQuery) -> tuple[Sequence[FailureGroup], bool]:
    """Count failed jobs of each kind; return the rows, and whether all jobs were counted."""
    most = math.inf if query.all else COUNTED
    visible, ends_at, complete = visible_jobs(query), trio.current_time() + SEARCH_S, True
    rows: dict[tuple[str, ...], FailureGroup] = {}
    for which in (Listed.FAILED_DOWNLOADS, Listed.FAILED_CALLBACKS):
        cursor, read = "", 0
        while True:
            page, cursor = await store.failures(which, cursor, COUNTED_AT_ONCE)
            for row in page:
                key = (row.kind, row.aggr_id, row.error_code, row.error)
                if visible(row.aggr_id):
                    rows[key] = _joined(rows[key], row) if key in rows else row
            read += COUNTED_AT_ONCE
            if not cursor:
                break
            if read >= most or trio.current_time() >= ends_at:
                complete = False
                break
    return list(rows.values()), complete


def _joined(row: FailureGroup, other: FailureGroup) -> FailureGroup:
    """The sum of two rows with the same aggregation and reason."""
    last = max(row, other, key=lambda counted: counted.newest_at or _NEVER)
    return last.model_copy(update={"jobs": row.jobs + other.jobs})


def _count(rows: Iterable[FailureCount]) -> FailureCount:
    counts = list(rows)
    times = [count.newest_at for count in counts if count.newest_at]
    return FailureCount(jobs=sum(count.jobs for count in counts), newest_at=max(times, default=None))
