"""JSON representations of the store's data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from downloader.api.answers import CallbackAnswer, JobAnswer, TaskAnswer
from downloader.errors import StorageError
from downloader.model import JobSpec, State
from downloader.net import redact_url
from downloader.observe import COUNTERS, by_name
from downloader.store import Backlog, JobView, Load, TaskView


def job_view(view: JobView, download_url: Callable[[JobSpec], str]) -> JobAnswer:
    """The answer of `GET /jobs/<id>`: no headers or proxy; no passwords or query values in URLs.

    `download_url` gives the URL of the job's file, and raises `StorageError` if the storage fails.
    """
    spec, outcome = view.spec, view.outcome
    has_file = view.download.state is State.SUCCEEDED and outcome is not None
    return {
        "id": spec.id,
        "aggr_id": spec.aggr_id,
        "url": redact_url(spec.url),
        "created_at": rfc3339(spec.created_ms),
        **_task(view.download),
        "crashes": view.download.crashes,
        "priority": spec.priority,
        "error": outcome.error if outcome else "",
        "error_code": str(outcome.error_code) if outcome else "",
        "response_code": outcome.response_code if outcome else 0,
        "file": {
            "path": spec.storage_key,
            "size": outcome.file.size,
            "sha256": outcome.file.sha256,
            "mime_type": outcome.file.mime_type,
            "image_size": outcome.file.image_size,
            "filename": outcome.file.filename,
        }
        if has_file and outcome
        else None,
        "download_url": _download_url(spec, download_url) if has_file else "",
        "extra": spec.extra,
        "callback": _callback(view),
        "kept_until": rfc3339(view.kept_until_ms),
    }


def _download_url(spec: JobSpec, download_url: Callable[[JobSpec], str]) -> str:
    try:
        return download_url(spec)
    except StorageError:  # the callback has it, as soon as the storage answers
        return ""


def _callback(view: JobView) -> CallbackAnswer | None:
    if view.callback is None:
        return None
    kind, destination = view.spec.callback(success=view.download.state is State.SUCCEEDED)
    return {"type": kind, "destination": redact_url(destination), **_task(view.callback)}


def _task(task: TaskView) -> TaskAnswer:
    return {
        "state": str(task.state),
        "attempts": task.attempts,
        "deliveries": task.deliveries,
        "due_at": rfc3339(task.due_ms),
        "started_at": rfc3339(task.started_ms),
        "finished_at": rfc3339(task.finished_ms),
        "errors": [
            {"at": rfc3339(entry.get("at_ms")), "error": entry.get("error", "")} for entry in task.log
        ],
    }


def rfc3339(ms: int | None) -> str | None:
    """A Unix time as RFC 3339 in UTC, to the millisecond."""
    if not ms:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def unix_ms(text: str) -> int:
    """The Unix time of a text as in RFC 3339; 1 for one before 1970.

    Raises:
        ValueError: it is no time, or has no offset from UTC.
    """
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is not None:
            return max(1, int(found.astimezone(UTC).timestamp() * 1000))
    except (ValueError, OverflowError):
        pass
    raise ValueError("must be a time with its offset, as in RFC 3339")


FAILED_SHOWN = 20
"""Most destinations that are named with the number of their failed callbacks."""


def waiting(load: Load, backlog: Backlog, *, destinations: bool) -> dict[str, Any]:
    """The JSON of what waits; `destinations`: whether the caller may see the destinations of callbacks."""
    shown = backlog.destinations if destinations else ()
    return {
        "downloads": {
            "pending": backlog.downloads.pending,
            "in_flight": load.downloads,
            "aggregations": backlog.downloads.groups,
            "cooling": cooling(load),
            "next_due_at": rfc3339(backlog.downloads.next_ms),
        },
        "callbacks": {
            "pending": backlog.callbacks.pending,
            "in_flight": load.callbacks,
            "failed": backlog.failed_callbacks,
            "next_due_at": rfc3339(backlog.callbacks.next_ms),
            "destinations": [
                {
                    "destination": each.destination,
                    "pending": each.pending,
                    "in_flight": each.in_flight,
                    "limit": each.limit,
                    "due_at": rfc3339(each.due_ms),
                }
                for each in shown
            ],
            "more_destinations": backlog.callbacks.groups - len(shown) if destinations else 0,
            "failed_to": [
                {"destination": name, "failed": failed}
                for name, failed in (backlog.failed_to[:FAILED_SHOWN] if destinations else ())
            ],
        },
    }


def cooling(load: Load) -> int:
    """How many of the aggregations that were read cool down."""
    return sum(each.cooling_until_ms is not None for each in load.aggregations)


def fleet_counters(
    role: str, reports: Iterable[Mapping[str, Any]], totals: Mapping[str, int]
) -> dict[str, int | float]:
    """A role's counters, which include instances that have ended, and its gauges over the live instances."""
    known = {name: value for name, value in by_name(totals).items() if name in COUNTERS[role]}
    return dict(sorted((counters(reports) | known).items()))


def counters(reports: Iterable[Mapping[str, Any]], field: str = "counters") -> dict[str, int | float]:
    """The sums of the counters in one field of the instances' reports; ignores what is not a number."""
    sums: dict[str, int | float] = {}
    for report in reports:
        found = report.get(field)
        for name, value in found.items() if isinstance(found, Mapping) else ():
            if isinstance(value, int | float) and not isinstance(value, bool):
                sums[name] = sums.get(name, 0) + value
    return sums
