"""Routes about accepted jobs: to read one, to cancel it, and to retry its callback or download."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, cast

from quart import request
from quart_trio import QuartTrio

from downloader.api.answers import JobAnswer
from downloader.api.auth import CALLER, Caller
from downloader.api.deps import ApiDeps
from downloader.api.globs import Allows, anything
from downloader.api.problems import UNKNOWN_JOB, Problem, Refused
from downloader.api.views import job_view
from downloader.observe import Event, get_logger
from downloader.store import CallbackPlan, Changed, JobStore, JobView

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
