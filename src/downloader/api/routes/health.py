"""Routes for load balancers, supervisors and dashboards."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from quart import Response

from downloader.api.auth import check_sees_all, sees_all, visible_aggregations
from downloader.api.deps import Context
from downloader.api.problems import not_found
from downloader.api.routing import TEXT, ResponseSpec, route
from downloader.api.snapshot import COUNTED_ROLES, DESTINATIONS, SAMPLED
from downloader.api.views import counters, waiting, waiting_of_some
from downloader.observe import by_name
from downloader.store import StoreError
from downloader.wire import BacklogPoint, Ready, Status, Waiting


@route(
    "GET",
    "/hb",
    scope=None,
    when_crowded=True,
    every_method=True,
    responses={
        HTTPStatus.OK: ResponseSpec("In service: `OK`.", media_type=TEXT),
        HTTPStatus.SERVICE_UNAVAILABLE: ResponseSpec("`api.heartbeat_path` exists.", media_type=TEXT),
    },
)
async def heartbeat(context: Context) -> Response:
    """For load balancers.

    Each method gets the same response: load balancers send `GET`, `HEAD` or `OPTIONS`.
    """
    path = context.deps.settings.heartbeat_path
    # Not `Path.exists`, which raises if it may not read the folder. A stat costs less than a thread.
    if path and os.path.exists(path):  # noqa: ASYNC240, PTH110
        return Response("Out of service", HTTPStatus.SERVICE_UNAVAILABLE, content_type=TEXT)
    return Response("OK", content_type=TEXT)


@route(
    "GET",
    "/health/live",
    scope=None,
    when_crowded=True,
    responses={HTTPStatus.OK: ResponseSpec("The process is alive.", Status)},
)
async def live(_context: Context) -> Status:
    """Whether the process is alive."""
    return Status(status="ok")


@route(
    "GET",
    "/health/ready",
    scope=None,
    when_crowded=True,
    responses={
        HTTPStatus.OK: ResponseSpec("The instance can work.", Ready),
        HTTPStatus.SERVICE_UNAVAILABLE: ResponseSpec(
            "The store cannot be reached, a role does not run, or the disk is full.", Ready
        ),
    },
)
async def ready(context: Context) -> tuple[Ready, int]:
    """Whether the instance can work."""
    roles = dict(context.deps.ready())
    try:
        await context.store.ping()
        store = True
    except StoreError:
        store = False
    reasons = [] if store else ["the store cannot be reached"]
    reasons += [f"the role {role} does not run" for role, runs in roles.items() if not runs]
    # The store's memory and a late event loop do not count: elsewhere they would be the same.
    reasons += [text for name, text in context.deps.troubles().items() if name == "disk"]
    good = not reasons
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    # An unhealthy backend does not make the instance unready: its other backends work, and another instance
    # would have the same trouble.
    backends = context.deps.healthy()
    state = "ok" if good else "not ready"
    return Ready(status=state, store=store, roles=roles, reasons=reasons, backends=backends), status


@route(
    "GET",
    "/stats",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("Numbers of the whole fleet.", Waiting)},
)
async def stats_of_all(context: Context) -> Waiting:
    """Show how many downloads and callbacks wait."""
    load, allows = await context.store.load(SAMPLED), visible_aggregations()
    if not sees_all():
        return waiting_of_some([row for row in load.aggregations if allows(row.aggr_id)])
    return waiting(load, await context.store.backlog(DESTINATIONS))


@route(
    "GET",
    "/backlog",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("A point every five minutes.", list[BacklogPoint])},
)
async def backlog(context: Context) -> Sequence[BacklogPoint]:
    """The backlog of the last day.

    A token needs all aggregations. There is no point of a time in which no API process ran.
    """
    check_sees_all()
    return await context.store.history()


@route(
    "GET",
    "/stats/<role>",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("The counters by name.", dict[str, int | float])},
    problems={HTTPStatus.NOT_FOUND: "there is no such role"},
)
async def stats(context: Context, role: str) -> Mapping[str, int | float]:
    """Counters.

    Counters include instances that have ended; gauges are of the live instances.
    """
    if role not in COUNTED_ROLES:
        raise not_found("Only processor and notifier have statistics.")
    check_sees_all()
    reports = await context.store.reports(role)
    totals = by_name(await context.store.totals(role))
    return dict(sorted((counters(reports) | counters(reports, "predecessor") | totals).items()))
