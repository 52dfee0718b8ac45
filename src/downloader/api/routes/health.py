"""Routes for load balancers, supervisors and dashboards."""

from __future__ import annotations

import os
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from quart_trio import QuartTrio

from downloader.api.deps import ApiDeps
from downloader.api.problems import not_found
from downloader.api.routes.jobs import sees_all
from downloader.api.routes.snapshot import COUNTED_ROLES, DESTINATIONS, SAMPLED
from downloader.api.views import counters, waiting
from downloader.observe import by_name
from downloader.store import StoreError


def add_health(app: QuartTrio, deps: ApiDeps) -> None:
    """`GET /hb`, `/health/live`, `/health/ready`, `/stats`, `/stats/<role>`."""
    heartbeat = deps.settings.heartbeat_path

    @app.get("/hb")
    async def hb() -> tuple[dict[str, Any], int]:
        # Not `Path.exists`, which raises if it may not read the folder. A stat costs less than a thread.
        if heartbeat and os.path.exists(heartbeat):  # noqa: ASYNC240, PTH110
            return {"status": "out of service"}, HTTPStatus.SERVICE_UNAVAILABLE
        return {"status": "ok"}, HTTPStatus.OK

    @app.get("/health/live")
    async def live() -> dict[str, Any]:
        return {"status": "ok"}

    @app.get("/health/ready")
    async def ready() -> tuple[dict[str, Any], int]:
        roles = dict(deps.ready())
        try:
            await deps.store.ping()
            store = True
        except StoreError:
            store = False
        good = store and all(roles.values())
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        answer: dict[str, Any] = {"status": "ok" if good else "not ready", "store": store, "roles": roles}
        # An unhealthy backend does not make the instance unready: its other backends work, and another
        # instance would have the same trouble.
        if backends := deps.healthy():
            answer["backends"] = dict(backends)
        return answer, status

    @app.get("/stats")
    async def backlog() -> Mapping[str, Any]:
        load, found = await deps.store.load(SAMPLED), await deps.store.backlog(DESTINATIONS)
        return waiting(load, found, destinations=sees_all())

    @app.get("/stats/<role>")
    async def stats(role: str) -> Mapping[str, Any]:
        if role not in COUNTED_ROLES:
            raise not_found("Only processor and notifier have statistics.")
        reports = await deps.store.reports(role)
        # Counters are totals that include instances which have ended.
        totals = by_name(await deps.store.totals(role))
        return dict(sorted((counters(reports) | counters(reports, "predecessor") | totals).items()))
