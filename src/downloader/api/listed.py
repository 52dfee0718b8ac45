"""Lists of jobs, page by page: `GET /jobs` answers them, `POST /retry` sends failed callbacks again."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from urllib.parse import urlencode

from quart import request
from quart_trio import QuartTrio

from downloader.api.answers import FailuresAnswer, ListedAnswer, ListedPageAnswer, RetriedAnswer
from downloader.api.deps import ApiDeps
from downloader.api.jobs import visible_aggregations
from downloader.api.problems import Problem, Refused
from downloader.api.views import rfc3339, unix_ms
from downloader.model import State
from downloader.store import Changed, JobStore, Listed, ListedJob

PAGE = 200
"""Jobs that one request reads: a few milliseconds of the store's time."""

FINISHED_STATES = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
CALLBACK_STATES = (State.SUCCEEDED, State.FAILED)


def add_listed(app: QuartTrio, deps: ApiDeps) -> None:
    """`GET /jobs`, `GET /failures` and `POST /retry`."""

    @app.get("/jobs")
    async def list_jobs() -> tuple[ListedPageAnswer, int, dict[str, str]]:
        state, callback = request.args.get("state", ""), request.args.get("callback", "")
        found, cursor = await _page(deps.store, state, callback)
        jobs = [_answer(each) for each in found]
        return {"jobs": jobs, "cursor": cursor}, HTTPStatus.OK, next_page("/jobs", cursor)

    @app.get("/failures")
    async def failures() -> FailuresAnswer:
        allows, aggr_id = visible_aggregations(), request.args.get("aggr_id", "")
        newest = await deps.store.failures(PAGE)
        found = [each for each in newest if allows(each.aggr_id) and aggr_id in ("", each.aggr_id)]
        return {"jobs": [_answer(each) for each in found]}

    @app.post("/retry")
    async def retry_all() -> RetriedAnswer:
        found, cursor = await _page(deps.store, "", State.FAILED)
        retried = 0
        for each in found:
            # Not durable: under `aof` a page would wait for 200 syncs to the disk, one after the other.
            answer = await deps.store.retry(
                each.job_id, download=False, limit=deps.callback_limit, durable=False
            )
            retried += answer is Changed.DONE
        return {"retried": retried, "cursor": cursor}


async def _page(store: JobStore, state: str, callback: str) -> tuple[Sequence[ListedJob], str]:
    """The jobs on one page that match the request's query, and the cursor of the next, empty at the end.

    Raises:
        Refused: 422, with the parameter at fault.
    """
    aggr_id, since = request.args.get("aggr_id", ""), request.args.get("since", "")
    which = _which(state, callback, aggr_id, since)
    try:
        since_ms = unix_ms(since) if since else 0
    except ValueError as error:
        raise Refused(bad_query("since", f"{error}.")) from None
    try:
        page = await store.jobs(which, aggr_id, request.args.get("cursor", ""), PAGE)
    except ValueError:
        raise Refused(bad_query("cursor", "must be one from an earlier answer.")) from None
    allows = visible_aggregations()
    found = [
        each
        for each in page.jobs
        if allows(each.aggr_id)
        and aggr_id in ("", each.aggr_id)
        and state in ("", each.state)
        and callback in ("", each.callback)
        and (not since_ms or (_ended_ms(each, callback) or 0) >= since_ms)
    ]
    return found, page.cursor


def _ended_ms(job: ListedJob, callback: str) -> int | None:
    """What `since` is compared with."""
    return job.failed_ms if callback == State.FAILED else job.finished_ms


def _which(state: str, callback: str, aggr_id: str, since: str) -> Listed:
    """Where the jobs of this query are found.

    Raises:
        Refused: 422, no index of the store has them.
    """
    if not state and not callback:
        raise Refused(bad_query("state", "or callback is required: the store has no list of all jobs."))
    if callback and callback not in CALLBACK_STATES:
        raise Refused(bad_query("callback", "must be succeeded or failed."))
    if not state or state in FINISHED_STATES:
        return Listed.FINISHED
    if state not in (State.PENDING, State.RUNNING):
        raise Refused(bad_query("state", f"must be one of {', '.join(State)}."))
    if callback:
        raise Refused(bad_query("callback", "applies only to jobs whose download is over."))
    if since:
        raise Refused(bad_query("since", "applies only to jobs whose download is over."))
    if state == State.RUNNING:
        return Listed.RUNNING
    if not aggr_id:
        raise Refused(bad_query("aggr_id", "is required for pending jobs, which are listed by aggregation."))
    return Listed.PENDING


def _answer(job: ListedJob) -> ListedAnswer:
    return {
        "id": job.job_id,
        "aggr_id": job.aggr_id,
        "state": job.state,
        "callback": job.callback or None,
        "finished_at": rfc3339(job.finished_ms),
        "failed_at": rfc3339(job.failed_ms),
        "error": job.error,
    }


def next_page(route: str, cursor: str) -> dict[str, str]:
    """The header that leads to the page behind the request's (RFC 8288); none if the cursor is empty."""
    query = urlencode({**request.args.to_dict(), "cursor": cursor})
    return {"Link": f'<{route}?{query}>; rel="next"'} if cursor else {}


def bad_query(field: str, detail: str) -> Problem:
    """422: a parameter of the query is malformed."""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "query", detail=f"{field} {detail}", field=field)
