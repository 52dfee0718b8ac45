"""Routes about accepted jobs: to read, cancel and list them, and to retry callbacks or downloads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import urlencode

from quart import request
from quart_trio import QuartTrio

from downloader.api.answers import FailuresAnswer, JobAnswer, ListedAnswer, ListedPageAnswer, RetriedAnswer
from downloader.api.auth import CALLER, Caller
from downloader.api.deps import ApiDeps
from downloader.api.globs import Allows, anything
from downloader.api.problems import UNKNOWN_JOB, Problem, Refused
from downloader.api.views import job_view, rfc3339, unix_ms
from downloader.model import State
from downloader.observe import Event, get_logger
from downloader.store import CallbackPlan, Changed, JobStore, JobView, Listed, ListedJob

_log = get_logger()

_JOB_ID = re.compile(r"[0-9A-Za-z]{14}")


def add_jobs(app: QuartTrio, deps: ApiDeps) -> None:
    """`GET /jobs/<id>`, `DELETE /jobs/<id>`, `POST /retry/<id>`, `GET /dashboard/aggregations`."""

    @app.get("/jobs/<job_id>")
    async def job(job_id: str) -> JobAnswer:
        view = await visible_job(deps.store, job_id)
        if view is None:
            raise Refused(UNKNOWN_JOB)
        return job_view(view, deps.download_url)

    @app.delete("/jobs/<job_id>")
    async def cancel(job_id: str) -> tuple[dict[str, Any], int]:
        await _cancel(deps, job_id)
        return {"id": job_id}, HTTPStatus.ACCEPTED

    @app.post("/retry/<job_id>")
    async def retry(job_id: str) -> tuple[dict[str, Any], int, dict[str, str]]:
        answer = Changed.UNKNOWN
        known = _JOB_ID.fullmatch(job_id) is not None
        if known and (sees_all() or await visible_job(deps.store, job_id) is not None):
            again = request.args.get("download", "") not in ("", "0", "false")
            answer = await deps.store.retry(job_id, download=again, limit=deps.callback_limit)
        if answer is Changed.UNKNOWN:
            raise Refused(UNKNOWN_JOB)
        if answer is Changed.CONFLICT:
            raise Refused(_NOT_TO_BE_RETRIED)
        return {"id": job_id}, HTTPStatus.CREATED, {"Location": f"/jobs/{job_id}"}

    @app.get("/dashboard/aggregations")
    async def aggregations() -> list[dict[str, Any]]:
        sizes = await deps.store.aggregation_sizes()
        allowed = visible_aggregations()
        return [{"name": f"jobs:{name}", "size": size} for name, size in sizes.items() if allowed(name)]


async def _cancel(deps: ApiDeps, job_id: str) -> None:
    view = await visible_job(deps.store, job_id)
    answer = Changed.UNKNOWN
    if view is not None:
        plan = CallbackPlan.of(view.spec, success=False, per_destination=deps.callback_limit)
        if view.spec.sealed and plan is not None:  # its group depends on the destination
            raise Refused(_ENCRYPTED)
        answer = await deps.store.cancel(view.spec, plan, deps.keep_s)
    if view is None or answer is Changed.UNKNOWN:
        raise Refused(UNKNOWN_JOB)
    if answer is Changed.CONFLICT:
        raise Refused(_NOT_TO_BE_CANCELLED)
    _log.info(Event.JOB_CANCELLED, job_id=job_id, aggr_id=view.spec.aggr_id)


def visible_aggregations() -> Allows:
    """The aggregations that the request's caller may see."""
    caller = cast("Caller | None", request.scope.get(CALLER))
    return anything if caller is None else caller.aggregations


def sees_all() -> bool:
    """Whether the request's caller may see every aggregation."""
    return visible_aggregations() is anything


async def visible_job(store: JobStore, job_id: str) -> JobView | None:
    """The job with this id; `None` if there is none or the request's caller may not see it."""
    view = await store.get(job_id) if _JOB_ID.fullmatch(job_id) else None
    return view if view is not None and visible_aggregations()(view.spec.aggr_id) else None


_NOT_TO_BE_CANCELLED = Problem(
    HTTPStatus.CONFLICT, "not_to_be_cancelled", detail="The download of this job is over."
)

_ENCRYPTED = Problem(
    HTTPStatus.CONFLICT,
    "encrypted",
    detail="The job is encrypted with a key that is not in this instance's redis.encryption_keys.",
)

_NOT_TO_BE_RETRIED = Problem(
    HTTPStatus.CONFLICT,
    "not_to_be_retried",
    detail="Only a failed callback, or with ?download=1 a failed download, can be retried; no download whose"
    " aggregation uses another proxy now.",
)


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
