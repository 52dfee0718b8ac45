"""Failed callbacks, page by page: `GET /jobs?callback=failed` lists them, `POST /retry` sends them again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from quart import request
from quart_trio import QuartTrio

from downloader.api.deps import ApiDeps
from downloader.api.jobs import visible_aggregations
from downloader.api.problems import Problem, Refused
from downloader.api.views import rfc3339
from downloader.store import FailedCallback, JobStore, RetryAnswer

PAGE = 200
"""Finished jobs that one request reads: a few milliseconds of the store's time."""


def add_failed(app: QuartTrio, deps: ApiDeps) -> None:
    """`GET /jobs?callback=failed` and `POST /retry`."""

    @app.get("/jobs")
    async def jobs() -> tuple[dict[str, Any], int, dict[str, str]]:
        if request.args.get("callback") != "failed":
            raise Refused(bad_query("callback", "must be failed: no other jobs are listed."))
        found, cursor = await _failed_callbacks(deps.store)
        headers = {}
        if cursor:
            query = urlencode({**request.args.to_dict(), "cursor": cursor})
            headers["Link"] = f'</jobs?{query}>; rel="next"'
        rows = [
            {
                "id": each.job_id,
                "aggr_id": each.aggr_id,
                "failed_at": rfc3339(each.failed_ms),
                "error": each.error,
            }
            for each in found
        ]
        return {"jobs": rows, "cursor": cursor}, HTTPStatus.OK, headers

    @app.post("/retry")
    async def retry_all() -> dict[str, Any]:
        found, cursor = await _failed_callbacks(deps.store)
        retried = 0
        for each in found:
            answer = await deps.store.retry(each.job_id, download=False, limit=deps.callback_limit)
            retried += answer is RetryAnswer.DONE
        return {"retried": retried, "cursor": cursor}


async def _failed_callbacks(store: JobStore) -> tuple[Sequence[FailedCallback], str]:
    """The callbacks on one page that match the request's query, and the cursor of the next, empty at the end.

    Raises:
        Refused: 422, with the parameter at fault.
    """
    aggr_id, since = request.args.get("aggr_id"), request.args.get("since")
    try:
        since_ms = datetime.fromisoformat(since).timestamp() * 1000 if since else 0
    except (ValueError, OverflowError):
        raise Refused(bad_query("since", "must be a time as in RFC 3339.")) from None
    try:
        page = await store.failed_callbacks(request.args.get("cursor", ""), PAGE)
    except ValueError:
        raise Refused(bad_query("cursor", "must be one from an earlier answer.")) from None
    allows = visible_aggregations()
    found = [
        each
        for each in page.jobs
        if allows(each.aggr_id) and aggr_id in (None, each.aggr_id) and each.failed_ms >= since_ms
    ]
    return found, page.cursor


def bad_query(field: str, detail: str) -> Problem:
    """422: a parameter of the query is malformed."""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "query", detail=f"{field} {detail}", field=field)
