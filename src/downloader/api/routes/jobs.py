"""Routes about accepted jobs: to read, list and cancel jobs, and to retry callbacks or downloads."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Literal

import trio
from pydantic import BeforeValidator, Field, WithJsonSchema
from quart import request

from downloader.api.auth import audit, sees_all, visible_aggregations
from downloader.api.deps import ApiDeps, Context
from downloader.api.problems import refused
from downloader.api.routing import Flag, Paged, Query, ResponseSpec, bad_query, next_page, route
from downloader.api.views import job_view, progress_of
from downloader.model import JobSpec, State, StateName
from downloader.store import CallbackPlan, Changed, JobStore, JobView, Listed
from downloader.wire import (
    Accepted,
    Job,
    JobPage,
    ListedJob,
    Retried,
    moment,
    unix_ms,
)

PAGE = 200
"""Jobs that one request reads: a few milliseconds of the store's time."""

SEARCH_S = 1.0
"""Time after which a request to retry stops reading pages without a match."""

NOTED_CHARS = 512
"""Most characters of a parameter in the audit; only a list of tags may have more."""

_JOB_ID = re.compile(r"[0-9A-Za-z]{14}")

_LINK = {"Link": "The next page (RFC 8288)."}

_LOCATION = {"Location": "The job's route."}


def _moment(text: object) -> object:
    return moment(unix_ms(text)) if isinstance(text, str) else text


def _split(text: object) -> object:
    return frozenset(filter(None, text.split(","))) if isinstance(text, str) else text


Time = Annotated[
    datetime | None, BeforeValidator(_moment), WithJsonSchema({"type": "string", "format": "date-time"})
]


class CancelQuery(Query):
    """The parameters of `DELETE /jobs/<id>`."""

    purge: Flag = False
    """Instead of cancelling, delete the file and the record of a job that has ended."""


class RetryQuery(Query):
    """The parameters of `POST /retry/<id>`."""

    download: Flag = False
    """Repeat a failed download instead."""


class AggregationFilter(Query):
    """Filters for aggregations."""

    aggr_id: str = ""
    """Only jobs of this aggregation."""
    q: str = ""
    """Only jobs of aggregations whose name contains this text, in upper or lower case."""


class JobFilter(AggregationFilter, Paged):
    """Filters for jobs."""

    error_code: str = ""
    """Only jobs whose download ended with this `error_code`."""
    destination: str = ""
    """Only jobs with a callback to this destination, written as in `GET /stats`."""
    group: str = ""
    """Only jobs of this group."""
    tags: Annotated[frozenset[str], BeforeValidator(_split), WithJsonSchema({"type": "string"})] = frozenset()
    """Only jobs that have one of these tags, which commas separate."""
    since: Time = None
    """Only callbacks that failed, or downloads that ended, at this time (RFC 3339) or later."""
    until: Time = None
    """Only callbacks that failed, or downloads that ended, at this time or earlier."""


class ListQuery(JobFilter):
    """The parameters of `GET /jobs`."""

    state: StateName | Literal[""] = ""
    """Of the download."""
    callback: Literal["succeeded", "failed", ""] = ""
    """The state of the callback, of jobs whose download is over."""
    count: Annotated[int, Field(ge=1, le=PAGE)] = PAGE
    """Most jobs on a page."""


class RetryAllQuery(JobFilter, RetryQuery):
    """The parameters of `POST /retry`."""


@route(
    "GET",
    "/jobs/<job_id>",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("The job.", Job)},
    problems=["unknown_job"],
)
async def show(context: Context, job_id: str) -> Job:
    """One job."""
    view = await visible_job(context.store, job_id)
    if view is None:
        raise refused("unknown_job")
    job = job_view(view, context.deps.download_url, named=sees_all())
    if job.state != "running":
        return job
    progress = progress_of(await context.store.reports("processor"), named=sees_all())
    return job.model_copy(update={"progress": progress.get(job_id)})


@route(
    "DELETE",
    "/jobs/<job_id>",
    scope="submit",
    query=CancelQuery,
    responses={HTTPStatus.ACCEPTED: ResponseSpec("The job is cancelled, or is being deleted.", Accepted)},
    problems=["unknown_job", "not_to_be_cancelled", "not_ended", "encrypted"],
)
async def cancel(context: Context, job_id: str, query: CancelQuery) -> Accepted:
    """Cancel a job, or delete its file and record.

    A pending or running job is cancelled; its callback reports the `error_code` `cancelled`. With `purge`, an
    ended job is deleted.
    """
    deps, view = context.deps, await visible_job(context.store, job_id)
    if query.purge:
        return await _purge(context.store, job_id, view)
    result = Changed.UNKNOWN
    if view is not None:
        plan = callback_of_cancelled(view.spec, deps)
        result = await context.store.cancel(view.spec, plan, deps.keep_s)
    if view is None or result is Changed.UNKNOWN:
        raise refused("unknown_job")
    if result is Changed.CONFLICT:
        raise refused("not_to_be_cancelled")
    await audit(context.store, "cancel", job_id=job_id, aggr_id=view.spec.aggr_id)
    return Accepted(id=job_id)


async def _purge(store: JobStore, job_id: str, view: JobView | None) -> Accepted:
    result = Changed.UNKNOWN if view is None else await store.purge(job_id)
    if view is None or result is Changed.UNKNOWN:
        raise refused("unknown_job")
    if result is Changed.CONFLICT:
        raise refused("not_ended")
    await audit(store, "purge", job_id=job_id, aggr_id=view.spec.aggr_id)
    return Accepted(id=job_id)


@route(
    "GET",
    "/jobs",
    scope="read",
    query=ListQuery,
    responses={HTTPStatus.OK: ResponseSpec("A page.", JobPage, headers=_LINK)},
)
async def list_jobs(context: Context, query: ListQuery) -> tuple[JobPage, dict[str, str]]:
    """List jobs by state.

    The request needs `state` or `callback` or both; with `state` `pending` also `aggr_id` or `group`. With
    `group` alone, the unfinished jobs of the group are listed.
    """
    state: str = query.state
    callback = query.callback
    unfinished = query.group and not callback and state in ("", State.PENDING, State.RUNNING)
    which = Listed.GROUP if unfinished else _which(state, callback)
    pages = _pages(context.store, which, query, state=state, callback=callback, count=query.count)
    async with aclosing(pages):
        async for page in pages:
            if page.jobs:
                break
    if state == State.RUNNING:
        progress = progress_of(await context.store.reports("processor"), named=sees_all())
        jobs = [job.model_copy(update={"progress": progress.get(job.id)}) for job in page.jobs]
        page = page.model_copy(update={"jobs": jobs})
    return page, next_page("/jobs", page.cursor)


@route(
    "POST",
    "/retry/<job_id>",
    scope="retry",
    query=RetryQuery,
    responses={HTTPStatus.CREATED: ResponseSpec("The task is pending again.", Accepted, headers=_LOCATION)},
    problems=["unknown_job", "not_to_be_retried"],
)
async def retry(context: Context, job_id: str, query: RetryQuery) -> tuple[Accepted, dict[str, str]]:
    """Retry a job.

    Sends a failed callback again, or repeats a failed download.
    """
    result = Changed.UNKNOWN
    well_formed = _JOB_ID.fullmatch(job_id) is not None
    if well_formed and (sees_all() or await visible_job(context.store, job_id) is not None):
        result = await context.store.retry(
            job_id,
            download=query.download,
            limit=context.deps.callback_limit,
            own_limits=context.deps.own_limits,
        )
    if result is Changed.UNKNOWN:
        raise refused("unknown_job")
    if result is Changed.CONFLICT:
        raise refused("not_to_be_retried")
    await audit(context.store, "retry", job_id=job_id, download=query.download)
    return Accepted(id=job_id), {"Location": f"/jobs/{job_id}"}


@route(
    "POST",
    "/retry",
    scope="retry",
    query=RetryAllQuery,
    responses={HTTPStatus.OK: ResponseSpec("The page is done.", Retried)},
)
async def retry_all(context: Context, query: RetryAllQuery) -> Retried:
    """Send failed callbacks again, or repeat failed downloads.

    A request ends as soon as some jobs were retried, or after a second. Repeat the request with the cursor
    from the response until that is empty.
    """
    pages = _pages(
        context.store,
        Listed.FAILED_DOWNLOADS if query.download else Listed.FAILED_CALLBACKS,
        query,
        state=State.FAILED if query.download else "",
        callback="" if query.download else State.FAILED,
        search_s=SEARCH_S,
    )
    retried = 0
    async with aclosing(pages):
        async for page in pages:
            if ids := [job.id for job in page.jobs]:
                results = await context.store.retry_all(
                    ids,
                    download=query.download,
                    limit=context.deps.callback_limit,
                    own_limits=context.deps.own_limits,
                )
                retried = results.count(Changed.DONE)
            if retried:
                break
    if retried:
        items = request.args.items()
        given = {name: value[:NOTED_CHARS] for name, value in items if value and name != "cursor"}
        await audit(context.store, "retry_jobs", count=retried, query=given)
    return Retried(retried=retried, cursor=page.cursor)


def callback_of_cancelled(spec: JobSpec, deps: ApiDeps) -> CallbackPlan | None:
    """The callback that reports the cancel of a job.

    Raises:
        Refused: 409, the job is encrypted, and the callback's queue depends on the destination.
    """
    plan = CallbackPlan.of(
        spec, success=False, per_destination=deps.callback_limit, own_limits=deps.own_limits
    )
    if spec.sealed and plan is not None:
        raise refused("encrypted")
    return plan


async def visible_job(store: JobStore, job_id: str) -> JobView | None:
    """The job with this id; `None` if no such job exists or the request's caller may not see the job."""
    view = await store.get(job_id) if _JOB_ID.fullmatch(job_id) else None
    return view if view is not None and visible_aggregations()(view.spec.aggr_id) else None


async def _pages(
    store: JobStore,
    which: Listed,
    query: JobFilter,
    *,
    state: str,
    callback: str,
    count: int = PAGE,
    search_s: float = math.inf,
) -> AsyncGenerator[JobPage]:
    """Yield pages of a list, with the jobs that match a query, for at most `search_s`.

    Begins at the query's cursor.

    Raises:
        Refused: 422, with the parameter at fault.
    """
    cursor = query.cursor
    if (query.since or query.until) and which in (Listed.PENDING, Listed.RUNNING, Listed.GROUP):
        raise bad_query("since" if query.since else "until", "applies only to jobs whose download is over.")
    if which is Listed.PENDING and not query.aggr_id:
        raise bad_query("aggr_id", "is required for pending jobs, which are listed by aggregation.")
    ends = trio.current_time() + search_s
    matches = _matching(query, state=state, callback=callback)
    while True:
        try:
            listed = query.group if which is Listed.GROUP else query.aggr_id
            page = await store.jobs(which, listed, cursor, count, matches)
        except ValueError:
            raise bad_query("cursor", "must be one from an earlier answer.") from None
        yield page
        cursor = page.cursor
        if not cursor or trio.current_time() >= ends:
            return


def visible_jobs(query: AggregationFilter) -> Callable[[str], bool]:
    """A filter for names of aggregations: visible to the caller, and matching the query."""
    allows, part = visible_aggregations(), query.q.casefold()
    return lambda name: query.aggr_id in ("", name) and part in name.casefold() and allows(name)


def _matching(query: JobFilter, *, state: str, callback: str) -> Callable[[ListedJob], bool]:
    """A filter for the rows of a list: visible to the caller, in these states, and matching the query."""
    visible = visible_jobs(query)
    start, end = query.since, query.until

    def matches(job: ListedJob) -> bool:
        return (
            visible(job.aggr_id)
            and state in ("", job.state)
            and callback in ("", job.callback)
            and query.error_code in ("", job.error_code)
            and query.destination in ("", job.destination)
            and query.group in ("", job.group)
            and (not query.tags or not query.tags.isdisjoint(job.tags))
            and (start is end is None or _ended_between(job, callback, start, end))
        )

    return matches


def _ended_between(job: ListedJob, callback: str, start: datetime | None, end: datetime | None) -> bool:
    ended = job.failed_at if callback == State.FAILED else job.finished_at
    return ended is not None and (start is None or ended >= start) and (end is None or ended <= end)


def _which(state: str, callback: str) -> Listed:
    """The list that has the jobs in these states.

    Raises:
        Refused: 422, no index of the store has them.
    """
    if not state and not callback:
        raise bad_query("state", "or callback is required: the store has no list of all jobs.")
    if state in (State.PENDING, State.RUNNING):
        if callback:
            raise bad_query("callback", "applies only to jobs whose download is over.")
        return Listed.RUNNING if state == State.RUNNING else Listed.PENDING
    return Listed.FAILED_CALLBACKS if callback == State.FAILED else Listed.FINISHED
