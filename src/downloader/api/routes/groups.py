"""Routes about groups of jobs."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus

from quart import request

from downloader.api.auth import present_caller, visible_aggregations
from downloader.api.deps import Context
from downloader.api.json import parse_object
from downloader.api.parse import parse_job
from downloader.api.problems import Refused, fault_in, faulty, refused
from downloader.api.routes.aggregations import CANCELLED_AT_ONCE, can_be_named, cancel_batches
from downloader.api.routing import Paged, ResponseSpec, bad_query, next_page, route
from downloader.api.submission import over_quota
from downloader.store import CallbackPlan
from downloader.wire import CancelledJobs, Group, GroupCallback, GroupPage, GroupRequest

PAGE = 100
"""About how many groups a page has."""

_FIELDS = GroupRequest.__annotations__

_NAME = "the name is empty, too long, or has invisible characters"


@route(
    "GET",
    "/groups",
    scope="read",
    query=Paged,
    responses={
        HTTPStatus.OK: ResponseSpec("A page.", GroupPage, headers={"Link": "The next page (RFC 8288)."})
    },
)
async def list_groups(context: Context, query: Paged) -> tuple[GroupPage, dict[str, str]]:
    """List the groups of jobs.

    In no order, about 100 on a page. A service on a Redis Cluster may list a group on several pages.
    """
    try:
        page = await context.store.groups(query.cursor, PAGE)
    except ValueError:
        raise bad_query("cursor", "must be one from an earlier answer.") from None
    allows = visible_aggregations()
    page = page.model_copy(update={"groups": [group for group in page.groups if allows(group.name)]})
    return page, next_page("/groups", page.cursor)


@route(
    "GET",
    "/groups/<aggregation:group>",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("The group.", Group)},
    problems=["unknown_group"],
)
async def show(context: Context, group: str) -> Group:
    """Show one group of jobs, with its progress."""
    return await _visible(context, group)


@route(
    "POST",
    "/groups/<aggregation:group>",
    scope="submit",
    body=GroupRequest,
    callback=GroupCallback,
    responses={HTTPStatus.OK: ResponseSpec("The group.", Group)},
    problems=["group_complete", "over_quota"],
)
async def set_callback(context: Context, group: str) -> Group:
    """Set the callback of a group.

    Possible until the group is complete, also before its first job. The callback is sent once, when the group
    is sealed and all its jobs have ended.
    """
    deps, body, caller = context.deps, await request.data, present_caller()
    members = {field: value for field, value in parse_object(body).items() if field in _FIELDS}
    _check_name(group)
    # The callback is sent like a job's callback, and has to pass the same checks.
    spec = parse_job(
        body,
        {**members, "aggr_id": group, "aggr_limit": 1, "url": "http://group.invalid/"},
        deps,
        new_id=deps.store.new_id,
        caller=caller,
    )
    plan = CallbackPlan.of(
        spec, success=True, per_destination=deps.callback_limit, own_limits=deps.own_limits
    )
    if plan is None:
        fault = fault_in("callback_type", "required", "callback_type must be a backend for a group.")
        raise Refused(faulty(HTTPStatus.UNPROCESSABLE_ENTITY, [fault]))
    quota = None if caller is None else caller.quota
    shown = await context.store.set_group_callback(replace(spec, url="", counted=False), plan, quota)
    if shown is None:
        raise Refused(over_quota("groups"))
    if shown.state == "complete":
        raise refused("group_complete")
    return shown


@route(
    "POST",
    "/groups/<aggregation:group>/seal",
    scope="submit",
    responses={HTTPStatus.OK: ResponseSpec("The group.", Group)},
    problems=["malformed", "over_quota"],
)
async def seal(context: Context, group: str) -> Group:
    """Seal a group, because all its jobs are submitted.

    The group takes no more jobs, and is complete when all its jobs and their callbacks have ended. A group
    without jobs is complete at once. May be repeated.
    """
    _check_name(group)
    caller = present_caller()
    name, quota = ("", None) if caller is None else (caller.name, caller.quota)
    sealed = await context.store.seal_group(group, name, quota)
    if sealed is None:
        raise Refused(over_quota("groups"))
    return sealed


@route(
    "POST",
    "/groups/<aggregation:group>/reopen",
    scope="submit",
    responses={HTTPStatus.OK: ResponseSpec("The group.", Group)},
    problems=["unknown_group", "group_not_complete"],
)
async def reopen(context: Context, group: str) -> Group:
    """Reopen a complete group.

    The group takes jobs again, and retries of its jobs count again. When it is sealed and complete again, a
    second callback with another `webhook-id` is sent. An open group does not change.
    """
    await _visible(context, group)
    shown = await context.store.reopen_group(group, context.store.new_id(group))
    if shown is None:
        raise refused("unknown_group")
    if shown.state != "open":
        raise refused("group_not_complete")
    return shown


@route(
    "DELETE",
    "/groups/<aggregation:group>/jobs",
    scope="submit",
    responses={HTTPStatus.ACCEPTED: ResponseSpec("The number of cancelled jobs.", CancelledJobs)},
    problems=["unknown_group", "encrypted"],
)
async def cancel_jobs(context: Context, group: str) -> CancelledJobs:
    """Cancel all jobs of a group.

    Cancels pending and running jobs in batches, for some seconds. Repeat the request until the response is
    `complete`. Each callback reports the `error_code` `cancelled`. The group is not sealed.
    """
    await _visible(context, group)
    store = context.store
    return await cancel_batches(
        context, lambda cursor: store.cancellable(group, cursor or "", CANCELLED_AT_ONCE), group=group
    )


async def _visible(context: Context, name: str) -> Group:
    """The group, if the caller may see it.

    Raises:
        Refused: 404.
    """
    group = await context.store.group(name) if visible_aggregations()(name) else None
    if group is None:
        raise refused("unknown_group")
    return group


def _check_name(name: str) -> None:
    """Check that a job can name this group, and that the caller may.

    Raises:
        Refused: 403 or 422.
    """
    if not can_be_named(name):
        fault = fault_in("group", "malformed", f"group: {_NAME}.")
        raise Refused(faulty(HTTPStatus.UNPROCESSABLE_ENTITY, [fault]))
    if not visible_aggregations()(name):
        fault = fault_in("group", "forbidden", "The token may not use this group.")
        raise Refused(faulty(HTTPStatus.FORBIDDEN, [fault]))
