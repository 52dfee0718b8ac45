"""The data of one event of `GET /events`: the state of the fleet as JSON of bounded size. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from downloader.api.views import fleet_counters, troubles, waiting, waiting_of_some
from downloader.globs import Allows, anything
from downloader.store import Backlog, Load
from downloader.wire import AggregationLoad, rfc3339

ROLES = ("api", "processor", "notifier")

COUNTED_ROLES = ("processor", "notifier")

SAMPLED = 500
"""Aggregations read: more than are shown, since a token may see only few aggregations."""

SHOWN = 100
"""Most aggregations in an event."""

DESTINATIONS = 100
"""Most destinations of callbacks in an event."""

INSTANCES = 200
"""Most instances in an event."""

ERROR_CHARACTERS = 300
"""Most characters of a backend's last error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state of the fleet at one time."""

    store: bool
    """The store responds; if not, the other fields are from the store's last response."""
    reports: Mapping[str, Iterable[Mapping[str, Any]]]
    """The instances' reports by role."""
    totals: Mapping[str, Mapping[str, int]]
    """By role, the series of all instances, ended instances included."""
    backlog: Backlog | None
    load: Load | None
    """`None`, like `backlog`, until the store first responds."""
    stalled: bool = False
    """A download has been due, no attempt has ended and none has received a byte, for some minutes."""


NOTHING_KNOWN = Snapshot(store=False, reports={}, totals={}, backlog=None, load=None)


def encode(snapshot: Snapshot, allows: Allows) -> bytes:
    """The event's data for a caller that may see these aggregations: one line of ASCII JSON.

    `more_aggregations` is exact for a caller that may see all; for others it counts only those read.
    """
    loads = snapshot.load.aggregations if snapshot.load else []
    visible = [load for load in loads if allows(load.aggr_id)]
    document = {
        "store": snapshot.store,
        "paused": snapshot.load is not None and snapshot.load.paused,
        "aggregations": [dict(load) for load in visible[:SHOWN]],
        **(_of_all(snapshot) if allows is anything else _of_some(visible)),
    }
    return json.dumps(document, separators=(",", ":"), default=rfc3339).encode()


def _of_all(snapshot: Snapshot) -> Mapping[str, Any]:
    """The members about the whole fleet."""
    load, backlog = snapshot.load, snapshot.backlog
    instances = sorted(
        (_instance(role, report) for role, reports in snapshot.reports.items() for report in reports),
        key=lambda row: (row["host"], row["started_ms"], row["instance"], row["role"]),
    )
    return {
        "stalled": snapshot.stalled,
        "more_aggregations": max(0, load.total - min(len(load.aggregations), SHOWN)) if load else 0,
        "instances": instances[:INSTANCES],
        "more_instances": max(0, len(instances) - INSTANCES),
        "in_flight": {
            "downloads": load.downloads if load else 0,
            "callbacks": load.callbacks if load else 0,
        },
        "waiting": waiting(load, backlog).model_dump() if load and backlog else None,
        "counters": {
            role: fleet_counters(role, snapshot.reports.get(role, ()), snapshot.totals.get(role, {}))
            for role in COUNTED_ROLES
        },
    }


def _of_some(visible: Sequence[AggregationLoad]) -> Mapping[str, Any]:
    """The same members for a caller that may see only these aggregations: nothing about the fleet."""
    own = waiting_of_some(visible)
    return {
        "stalled": False,
        "more_aggregations": max(0, len(visible) - SHOWN),
        "instances": [],
        "more_instances": 0,
        "in_flight": {"downloads": own.downloads.in_flight},
        "waiting": own.model_dump(),
        "counters": {},
    }


def _instance(role: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """An instance's row. A report of another version may lack any field, or have one of another type."""
    counters = report.get("counters")
    in_flight = counters.get("in_flight") if isinstance(counters, Mapping) else None
    return {
        "instance": _text(report.get("instance")),
        "role": role,
        "host": _text(report.get("host")),
        "version": _text(report.get("version")),
        "started_ms": _number(report.get("started_ms")),
        "in_flight": None if in_flight is None else _number(in_flight),
        "unhealthy": _unhealthy(report.get("backends")),
        "troubles": {name: text[:ERROR_CHARACTERS] for name, text in troubles(report).items()},
    }


def _unhealthy(backends: object) -> list[dict[str, str]]:
    if not isinstance(backends, Mapping):
        return []
    return [
        {"backend": str(name), "error": _text(health.get("last_error"))[:ERROR_CHARACTERS]}
        for name, health in sorted(backends.items())
        if isinstance(health, Mapping) and health.get("healthy") is False
    ]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0
