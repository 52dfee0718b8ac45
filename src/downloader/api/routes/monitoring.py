"""Routes for load balancers, supervisors, dashboards and Prometheus; the same from every instance."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from itertools import accumulate, chain
from math import inf
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from quart import Response, request

from downloader.api.auth import check_sees_all, present_caller, sees_all, visible_aggregations
from downloader.api.deps import Context
from downloader.api.problems import refused
from downloader.api.routing import TEXT, Query, ResponseSpec, route
from downloader.api.snapshot import COUNTED_ROLES, DESTINATIONS, ROLES, SAMPLED
from downloader.api.views import cooling, counters, in_trouble, waiting, waiting_of_some
from downloader.observe import BUCKET, HISTOGRAMS, KINDS, METRICS, SEPARATOR, SUM, Metric, by_name
from downloader.store import Backlog, Load, StoreError
from downloader.wire import AuditEntry, BacklogPoint, Ready, Status, Waiting

if TYPE_CHECKING:
    from prometheus_client import core

Labels = tuple[str, ...]

Series = Mapping[str, Mapping[str, int]]
"""Values of the counters by role and series (see `downloader.observe.counters`)."""


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
    """Tell a load balancer whether to send requests here.

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


CHANGES_MAX = 2000
"""Most changes in a response: all that are kept."""


class ChangesQuery(Query):
    """The parameters of `GET /audit`."""

    count: Annotated[int, Field(ge=1, le=CHANGES_MAX)] = 100
    """Most changes in the response."""


@route(
    "GET",
    "/audit",
    scope="admin",
    query=ChangesQuery,
    responses={HTTPStatus.OK: ResponseSpec("The newest change first.", list[AuditEntry])},
)
async def changes(context: Context, query: ChangesQuery) -> Sequence[AuditEntry]:
    """List what was changed, and by which token.

    The newest 1,000 changes of limits and pauses, and the newest 1,000 cancels, retries and deletions. A
    token that does not have all aggregations gets the changes of tokens of its name.
    """
    caller = present_caller()
    own = None if sees_all() or caller is None else caller.name
    entries = await context.store.changes(query.count if own is None else CHANGES_MAX)
    return [entry for entry in entries if own in (None, entry.token)][: query.count]


@route(
    "GET",
    "/stats/<role>",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("The counters by name.", dict[str, int | float])},
    problems=["not_found"],
)
async def stats(context: Context, role: str) -> Mapping[str, int | float]:
    """Counters.

    Counters include instances that have ended; gauges are of the live instances.
    """
    if role not in COUNTED_ROLES:
        raise refused("not_found", "Only processor and notifier have statistics.")
    check_sees_all()
    reports = await context.store.reports(role)
    totals = by_name(await context.store.totals(role))
    return dict(sorted((counters(reports) | counters(reports, "predecessor") | totals).items()))


@route(
    "GET",
    "/metrics",
    scope="read",
    responses={HTTPStatus.OK: ResponseSpec("The metrics.", media_type="*/*")},
)
async def metrics(context: Context) -> Response:
    """Metrics for Prometheus.

    Of the whole fleet; every instance answers the same. Also as OpenMetrics.
    """
    check_sees_all()
    # Imported here: it takes a tenth of the start, and many instances never serve metrics.
    from prometheus_client import exposition  # noqa: PLC0415

    store = context.store
    series = {role: await store.totals(role) for role in ROLES}
    reports = {role: await store.reports(role) for role in ROLES}
    gauges = gauge_values(await store.load(SAMPLED), await store.backlog(DESTINATIONS), reports)
    encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
    body = encode(_Collected(list(families(series, gauges))))
    return Response(body, content_type=content_type)


class _Collected:
    """A registry of metrics for the encoder of prometheus-client."""

    def __init__(self, families: Iterable[core.Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[core.Metric]:
        return self._families


def gauge_values(
    load: Load, backlog: Backlog, reports: Mapping[str, Iterable[Mapping[str, object]]]
) -> Mapping[str, Mapping[Labels, float]]:
    """The values of all gauges, by name and label values."""
    kinds = {("download",): backlog.downloads, ("callback",): backlog.callbacks}
    due_at = min((row.due_at for row in backlog.destinations if row.due_at), default=None)
    overdue_s = backlog.now_ms / 1000 - due_at.timestamp() if due_at else 0
    waits_s = (backlog.now_ms - (backlog.oldest_due_ms or backlog.now_ms)) / 1000
    return {
        "downloader_pending": {kind: tasks.pending for kind, tasks in kinds.items()},
        "downloader_groups": {kind: tasks.queues for kind, tasks in kinds.items()},
        "downloader_next_due_seconds": {
            kind: max(0, tasks.next_ms - backlog.now_ms) / 1000
            for kind, tasks in kinds.items()
            if tasks.next_ms is not None
        },
        "downloader_aggregations_cooling": {(): cooling(load.aggregations)},
        "downloader_aggregations_paced": {(): sum(row.pace is not None for row in load.aggregations)},
        "downloader_downloads_oldest_due_seconds": {(): max(0, waits_s)},
        "downloader_callbacks_oldest_due_seconds": {(): max(0, overdue_s)},
        "downloader_callbacks_failed": {(): backlog.failed_callbacks},
        "downloader_job_groups": {(): backlog.job_groups},
        "downloader_job_groups_sealed": {(): backlog.sealed_groups},
        "downloader_in_flight": {("download",): load.downloads, ("callback",): load.callbacks},
        "downloader_instances": {(role,): len(list(of_role)) for role, of_role in reports.items()},
        "downloader_instances_in_trouble": {
            (name,): count for name, count in in_trouble(chain.from_iterable(reports.values())).items()
        },
        "downloader_backends_unhealthy": {(): counters(reports["notifier"]).get("backends_unhealthy", 0)},
    }


def families(series: Series, gauges: Mapping[str, Mapping[Labels, float]]) -> Iterator[core.Metric]:
    """All metrics, as objects of the library."""
    from prometheus_client import core  # noqa: PLC0415 - as above

    for metric in METRICS:
        if metric.type == "gauge":
            gauge = core.GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in gauges[metric.name].items():
                gauge.add_metric(labels, value)
            yield gauge
        elif metric.type == "counter":
            counter = core.CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in _sums(metric, series).items():
                counter.add_metric(labels, value)
            yield counter
        else:
            histogram = core.HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, (buckets, seconds) in _histograms(metric, series).items():
                histogram.add_metric(labels, buckets, seconds)
            yield histogram


def _sums(metric: Metric, series: Series) -> Mapping[Labels, int]:
    """The values of a counter by label values."""
    sums = dict.fromkeys(_always(metric), 0)
    prefix = metric.source.removesuffix("*")
    for role, name, labels, value in _parsed(series):
        if name == prefix:
            key = _labels(metric, role, labels)
        elif prefix != metric.source and name.startswith(prefix):
            key = _labels(metric, role, [name.removeprefix(prefix), *labels])
        else:
            continue
        sums[key] = sums.get(key, 0) + value
    return {key: value for key, value in sums.items() if len(key) == len(metric.labels)}


def _histograms(metric: Metric, series: Series) -> Mapping[Labels, tuple[list[tuple[str, float]], float]]:
    """The values of a histogram by label values: the counts up to each bound, and the sum of seconds."""
    bounds = HISTOGRAMS[metric.source]
    counts = {key: [0] * len(bounds) for key in _always(metric)}
    seconds = dict.fromkeys(counts, 0.0)
    for role, name, labels, value in _parsed(series):
        if name == metric.source + SUM:
            key = _labels(metric, role, labels)
            seconds[key] = seconds.get(key, 0.0) + value / 1_000_000
        elif name == metric.source + BUCKET:
            key = _labels(metric, role, labels[:-1])
            # A version with other buckets may have counted too.
            counts.setdefault(key, [0] * len(bounds))[bisect_left(bounds, float(labels[-1]))] += value
    names = ["+Inf" if bound == inf else f"{bound:g}" for bound in bounds]
    return {
        key: (list(zip(names, accumulate(in_buckets), strict=True)), seconds.get(key, 0.0))
        for key, in_buckets in counts.items()
        if len(key) == len(metric.labels)
    }


def _parsed(series: Series) -> Iterator[tuple[str, str, list[str], int]]:
    """Role, name, label values and value of each series."""
    for role, values in series.items():
        for text, value in values.items():
            name, *labels = text.split(SEPARATOR)
            yield role, name, labels, value


def _labels(metric: Metric, role: str, labels: Sequence[str]) -> Labels:
    return (KINDS.get(role, role), *labels) if metric.labels[:1] == ("kind",) else tuple(labels)


def _always(metric: Metric) -> Iterable[Labels]:
    """The label values that a metric reports from the start, as 0: all values that are known in advance."""
    if metric.labels == ("kind",):
        return [(kind,) for kind in KINDS.values()]
    return [] if metric.labels else [()]
