"""Responses of the API, made from the store's data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any, cast

from downloader.errors import StorageError
from downloader.model import ErrorName, JobSpec, Outcome
from downloader.net import redact_url, requested_url
from downloader.observe import COUNTERS, TROUBLES, by_name
from downloader.phases import Phases
from downloader.store import Backlog, JobView, Load
from downloader.wire import (
    Aggregation,
    AggregationLoad,
    Attempt,
    Job,
    JobCallback,
    JobFile,
    JobResponse,
    Progress,
    Redirect,
    Task,
    Waiting,
    WaitingCallbacks,
    WaitingDownloads,
    moment,
)


def progress_of(reports: Iterable[Mapping[str, Any]], *, named: bool) -> Mapping[str, Progress]:
    """The progress of running downloads by job id, from the reports of the processors.

    `named`: include the names of instances, which begin with host names; only for callers that may see the
    fleet. A report of another version may lack `running`, or have another form of it.
    """
    return {
        job_id: Progress(received=received, instance=str(report.get("instance", "")) if named else "")
        for report in reports
        if isinstance(running := report.get("running"), Mapping)
        for job_id, received in running.items()
        if isinstance(received, int)
    }


def job_view(view: JobView, download_url: Callable[[JobSpec, str], str], *, named: bool = False) -> Job:
    """The response of `GET /jobs/<id>`: no headers or proxy; no passwords or query values in URLs.

    `download_url` gives the URL of the job's file, given the SHA-256; raises `StorageError` if the storage
    fails. `named`: see `progress_of`.
    """
    spec, outcome = view.spec, view.outcome
    succeeded = view.download.state == "succeeded" and outcome is not None
    file = outcome.file if outcome is not None and outcome.has_file else None
    return Job(
        id=spec.id,
        aggr_id=spec.aggr_id,
        url=redact_url(spec.url),
        created_at=moment(spec.created_ms),
        **_task(view.download, named=named),
        priority=spec.priority,
        error=outcome.error if outcome else "",
        error_code=cast("ErrorName", str(outcome.error_code)) if outcome else "",
        response_code=outcome.response_code if outcome else 0,
        file=JobFile(path=spec.storage_key(file.sha256), md5=spec.md5, **asdict(file)) if file else None,
        response=_response(spec, outcome) if succeeded and outcome else None,
        download_url=_download_url(partial(download_url, spec, file.sha256)) if file else "",
        extra=spec.extra.encode(errors="replace").decode(),  # UTF-8 has no lone surrogates
        tags=spec.tags,
        group=spec.group,
        callback=_callback(view, named=named),
        last_attempt=_attempt(outcome.phases) if outcome and outcome.phases else None,
        kept_until=view.kept_until,
    )


def _response(spec: JobSpec, outcome: Outcome) -> JobResponse:
    final_url = redact_url(outcome.response.final_url or requested_url(spec.url))
    return JobResponse(**asdict(outcome.response) | {"final_url": final_url})


def _download_url(download_url: Callable[[], str]) -> str:
    try:
        return download_url()
    except StorageError:  # the callback has it, as soon as the storage responds
        return ""


def _task(task: Task, *, named: bool) -> dict[str, Any]:
    return dict(task) if named else dict(task) | {"instance": ""}


def _attempt(phases: Phases) -> Attempt:
    return Attempt(
        phases=phases.seconds,
        address=phases.address,
        redirects=[Redirect(status=status, url=url) for status, url in phases.redirects],
    )


def _callback(view: JobView, *, named: bool) -> JobCallback | None:
    if view.callback is None:
        return None
    kind, destination = view.spec.callback(success=view.download.state == "succeeded")
    return JobCallback(type=kind, destination=redact_url(destination), **_task(view.callback, named=named))


FAILED_SHOWN = 20
"""Most destinations that are named with a number of failed callbacks."""


def waiting(load: Load, backlog: Backlog) -> Waiting:
    """The response of `GET /stats` for the whole fleet."""
    return Waiting(
        downloads=WaitingDownloads(
            pending=backlog.downloads.pending,
            in_flight=load.downloads,
            aggregations=backlog.downloads.queues,
            cooling=cooling(load.aggregations),
            held=backlog.downloads.pending if load.paused else held(load.aggregations),
            oldest_due_at=moment(backlog.oldest_due_ms),
            next_due_at=moment(backlog.downloads.next_ms),
        ),
        callbacks=WaitingCallbacks(
            pending=backlog.callbacks.pending,
            in_flight=load.callbacks,
            failed=backlog.failed_callbacks,
            next_due_at=moment(backlog.callbacks.next_ms),
            destinations=backlog.destinations,
            more_destinations=backlog.callbacks.queues - len(backlog.destinations),
            failed_to=backlog.failed_to[:FAILED_SHOWN],
        ),
    )


def waiting_of_some(rows: Sequence[AggregationLoad]) -> Waiting:
    """The response of `GET /stats` for a caller that may see only the aggregations in `rows`."""
    return Waiting(
        downloads=WaitingDownloads(
            pending=sum(row.pending for row in rows),
            in_flight=sum(row.in_flight for row in rows),
            aggregations=len(rows),
            cooling=cooling(rows),
            held=held(rows),
            next_due_at=None,
        ),
        callbacks=None,
    )


def cooling(rows: Iterable[AggregationLoad]) -> int:
    """Number of aggregations that cool down."""
    return sum(row.cooling_until is not None for row in rows)


def held(rows: Iterable[AggregationLoad]) -> int:
    """Number of downloads that wait in aggregations that are paused or cool down."""
    return sum(row.pending for row in rows if row.paused or row.cooling_until is not None)


PUNCTUAL_S = 1.0
"""How late a start may be that waits only for the aggregation's rate or delay."""

LATE_S = 1.0
"""How late the event loop of an instance may be; jobs and requests then wait as long at each step."""


def troubles(report: Mapping[str, Any]) -> Mapping[str, str]:
    """The troubles that an instance has reported, by names of `TROUBLES`, each with a line of text."""
    reported = report.get("troubles")
    texts = {
        name: str(text)
        for name, text in (reported.items() if isinstance(reported, Mapping) else ())
        if name in TROUBLES
    }
    late_s = report.get("late_s")
    if isinstance(late_s, int | float) and late_s > LATE_S:
        texts["lag"] = f"its event loop was {late_s:.1f} s late"
    return texts


def in_trouble(reports: Iterable[Mapping[str, Any]]) -> Mapping[str, int]:
    """How many instances have each of the `TROUBLES`; an instance reports once for each role."""
    instances = {name: set[object]() for name in TROUBLES}
    for report in reports:
        for name in troubles(report):
            instances[name].add(report.get("instance"))
    return {name: len(names) for name, names in instances.items()}


def blocked(processors: Sequence[Mapping[str, Any]], *, all_paused: bool) -> str:
    """Why no download can start, as a state of `Aggregation`; empty if one can."""
    if all_paused:
        return "paused"
    if not processors:
        return "no_processor"
    return "disk_full" if all("disk" in troubles(report) for report in processors) else ""


def with_state(row: Aggregation, blocked: str, now: datetime) -> Aggregation:
    """The aggregation with the state; `blocked`: as from the function of this name."""
    return row.model_copy(update={"state": _state(row, blocked, now)})


def _state(row: Aggregation, blocked: str, now: datetime) -> str:
    if row.paused:
        return "paused"
    if row.cooling_until and row.cooling_until > now:
        return "cooling"
    if not row.pending or row.next_due_at is None:
        return "running" if row.in_flight else "idle"
    if row.in_flight >= row.limit:
        return "at_limit"
    return _waiting(row, (row.next_due_at - now).total_seconds(), blocked)


def _waiting(row: Aggregation, left_s: float, blocked: str) -> str:
    """The state of an aggregation that has a free slot and may start the next job in `left_s` seconds."""
    gap_s = max(*(1 / rate if rate else 0 for rate in (row.rate, row.pace)), row.delay or 0)
    if blocked and left_s <= gap_s:
        return blocked
    if gap_s and -gap_s - PUNCTUAL_S <= left_s <= gap_s:
        return "at_rate"
    if row.in_flight:
        return "running"
    return "scheduled" if left_s > 0 else "ready"


def fleet_counters(
    role: str, reports: Iterable[Mapping[str, Any]], totals: Mapping[str, int]
) -> dict[str, int | float]:
    """A role's counters, ended instances included, and the gauges of the live instances."""
    sums = {name: value for name, value in by_name(totals).items() if name in COUNTERS[role]}
    return dict(sorted((counters(reports) | sums).items()))


def counters(reports: Iterable[Mapping[str, Any]], field: str = "counters") -> dict[str, int | float]:
    """The sums of the counters in one field of the instances' reports; ignores what is not a number."""
    sums: dict[str, int | float] = {}
    for report in reports:
        members = report.get(field)
        for name, value in members.items() if isinstance(members, Mapping) else ():
            if isinstance(value, int | float) and not isinstance(value, bool):
                sums[name] = sums.get(name, 0) + value
    return sums
