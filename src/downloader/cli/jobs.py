"""`downloader jobs`, `failures`, `backlog` and `events`: lists and numbers of a running service."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from downloader.cli.options import LOCAL, NO_FILTERS, AggrId, Filters, Json, Part, Service, connect
from downloader.cli.output import Cell, local_time, print_rows, show_table, write, write_json
from downloader.errors import ConfigError
from downloader.model import StateName

if TYPE_CHECKING:
    from downloader.client import ListedJob

Count = Annotated[int | None, Parameter(name="-n", validator=Number(gte=1))]

ROWS = 200
"""Jobs printed at once: one page of the API."""

FOLLOW_S = 2.0
"""Time between two looks of `--follow`."""

LATE = timedelta(seconds=30)
"""How far `--follow` looks back from the newest job that it has printed. The list is ordered by the end of
the download, but a job is in it only when its callback has ended too, so it may appear behind newer jobs. A
job whose callback takes longer than this is missed."""

FOLLOWED = 10
"""Jobs of the past that `--follow` begins with, like `tail -f`."""

STATUS_PREFIX = "Received Status code "
"""Beginning of errors that a terminal's table leaves out, so that the status fits into a narrow column."""

WIDE, VERY_WIDE = 110, 160
"""Widths of a terminal, in characters, from which the table has URLs beside errors, and all columns."""


def jobs(
    *,
    state: Annotated[StateName | None, Parameter(name="--state")] = None,
    callback: Annotated[Literal["failed", "succeeded"] | None, Parameter(name="--callback")] = None,
    filters: Filters = NO_FILTERS,
    count: Count = None,
    follow: Annotated[bool, Parameter(name="--follow", show_default=False)] = False,
    json_: Json = False,
    service: Service = LOCAL,
) -> int:
    """List jobs of a running service.

    By default these are the jobs that are being downloaded; with --group alone,
    the unfinished jobs of the group. A terminal shows a table, a pipe gets
    tab-separated lines. Of jobs that have ended the newest come first. With
    --follow they come last, and each job is added when its callback has ended.
    The exit status is 1 if there is no such group.

    For example:
      downloader jobs
      downloader jobs --state failed --since 2h --error-code timeout
      downloader jobs --callback failed --aggr-id example.org -n 20
      downloader jobs --state pending --aggr-id example.org
      downloader jobs --group night-17
      downloader jobs --state failed --follow

    Args:
        state: State of the download; pending needs --aggr-id or --group.
        callback: Only those whose callback failed or succeeded.
        count: At most so many.
        follow: Go on with the jobs that end from now on, until Ctrl-C.
        json_: Write a JSON object for each.
    """
    if state is None and callback is None and filters.group is None:
        state = "running"
    if follow and callback is None and state in (None, "pending", "running"):
        raise ConfigError("--follow needs --callback, or --state succeeded, failed or cancelled")
    with connect(service) as client:
        find = partial(client.jobs, state=state, callback=callback, **filters.fields())
        if follow:
            by_callback = callback == "failed"
            _follow(find, filters.since, count or FOLLOWED, by_callback=by_callback, as_json=json_)
        with closing(find()) as rows:
            shown = _show(islice(rows, count), as_json=json_)
        if not shown and filters.group is not None:
            client.group(filters.group)  # an unknown group is an error
    if not shown and not json_ and sys.stdout.isatty():
        write("no jobs are being downloaded" if state == "running" else "no such jobs")
    return 0


def _show(rows: Iterator[ListedJob], *, as_json: bool) -> int:
    """Print jobs; returns how many."""
    shown = 0
    while batch := list(islice(rows, ROWS)):
        if as_json:
            for row in batch:
                write_json(row)
        else:
            _list(batch, head=not shown)
        shown += len(batch)
    return shown


def _follow(
    find: Callable[..., Iterator[ListedJob]],
    since: datetime | None,
    count: int,
    *,
    by_callback: bool,
    as_json: bool,
) -> None:
    """Print the newest jobs, the newest last, and then each job that ends, until Ctrl-C."""

    def ended_at(row: ListedJob) -> datetime | None:
        return row.failed_at if by_callback else row.finished_at

    newest = list(islice(find(since=since), count))
    shown = bool(_show(reversed(newest), as_json=as_json))
    # Times are the service's: its clock may differ from ours.
    last = max((at for row in newest if (at := ended_at(row))), default=None)
    rows = list(find(since=last - LATE)) if last else []
    shown_ends = {(row.id, at) for row in rows if last and (at := ended_at(row)) and at <= last}
    while True:
        time.sleep(FOLLOW_S)
        rows = list(find(since=last - LATE if last else since))
        fresh = [row for row in rows if (row.id, ended_at(row)) not in shown_ends]
        if fresh and as_json:
            _show(reversed(fresh), as_json=True)
        elif fresh:
            _list(fresh[::-1], head=not shown)
        shown = shown or bool(fresh)
        last = max((at for row in rows if (at := ended_at(row))), default=last)
        shown_ends = {(row.id, at) for row in rows if (at := ended_at(row))}


def _list(rows: Sequence[ListedJob], *, head: bool) -> None:
    """Print rows of a table on a terminal, tab-separated lines elsewhere."""
    cells = [_cells(row) for row in rows]
    if not sys.stdout.isatty():
        show_table((), [list(row.values()) for row in cells])
        return
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    columns = list(_columns(unfinished=rows[0].state in ("pending", "running"), width=Console().width))
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", show_header=head, expand=True)
    # Fixed widths except for texts, so that the columns of all pages line up.
    for name, width, ratio in columns:
        table.add_column(name, width=width, ratio=ratio, no_wrap=True)
    for job, row in zip(rows, cells, strict=True):
        row["error"] = job.error.removeprefix(STATUS_PREFIX)
        short_time = local_time(job.finished_at)[5:16]  # without year and seconds
        row["ended"] = row["so far"] = decimal(job.progress.received) if job.progress else short_time
    print_rows(table, [[row[name] for name, _, _ in columns] for row in cells])


def _cells(row: ListedJob) -> dict[str, Cell]:
    """The cells of a tab-separated line, by the names of a terminal's columns."""
    from downloader.cli.submit_report import STYLES

    return {
        "job": row.id,
        "state": (row.state, STYLES.get(row.state, "")),
        "callback": (row.callback or "", STYLES.get(row.callback or "", "")),
        "ended": local_time(row.finished_at),
        "aggregation": row.aggr_id,
        "error": row.error,
        "code": row.error_code,
        "destination": row.destination,
        "url": row.url,
        "so far": str(row.progress.received) if row.progress else "",
    }


def _columns(*, unfinished: bool, width: int) -> Iterator[tuple[str, int | None, int | None]]:
    """The columns for which a terminal has room: name, and width or share of the remaining width."""
    yield "job", 14, None
    yield "state", 9, None
    if not unfinished:
        yield "callback", 9, None
    yield ("so far" if unfinished else "ended"), 11, None
    yield "aggregation", None, 2
    if not unfinished:
        yield "error", None, 3
        if width >= VERY_WIDE:
            yield "code", None, 1
            yield "destination", None, 2
    if unfinished or width >= WIDE:
        yield "url", None, 4


def failures(*, aggr_id: AggrId = None, q: Part = None, json_: Json = False, service: Service = LOCAL) -> int:
    """Show what has failed for good, by aggregation and reason.

    "retry --failed" sends the callbacks of these jobs again; with --download it
    repeats the downloads.

    For example:
      downloader failures
      downloader failures -q example

    Args:
        aggr_id: Only those of this aggregation.
        q: Only those of aggregations with this in their name.
        json_: Write one JSON object.
    """
    with connect(service) as client:
        failures = client.failures(aggr_id=aggr_id, q=q)
    if json_:
        write_json(failures)
        return 0
    rows: list[list[Cell]] = [
        [str(row.jobs), row.kind, row.aggr_id, local_time(row.newest_at), row.newest, row.error]
        for row in failures.groups
    ]
    columns = ("jobs", "what", "aggregation", "last", "job", "error")
    show_table(columns, rows, right=columns[:1], empty="nothing has failed")
    return 0


def backlog(*, json_: Json = False, service: Service = LOCAL) -> int:
    """Show how much waited during the last day, a line every five minutes.

    Succeeded and failed are the downloads that ended since the line before.

    For example:
      downloader backlog
      downloader backlog --json

    Args:
        json_: Write a JSON object for each line.
    """
    with connect(service) as client:
        points = client.backlog()
    if json_:
        for point in points:
            write_json(point)
        return 0
    columns = ("at", "downloads", "callbacks", "succeeded", "failed")
    rows: list[list[Cell]] = [
        [
            local_time(point.at),
            str(point.downloads),
            str(point.callbacks),
            # The counters begin again with a new store.
            str(max(0, point.succeeded - before.succeeded)),
            str(max(0, point.failed - before.failed)),
        ]
        for before, point in zip([*points[:1], *points[:-1]], points, strict=True)
    ]
    show_table(
        columns, rows, right=columns[1:], empty="there is no point yet: the first comes within five minutes"
    )
    return 0


def events(*, count: Count = None, service: Service = LOCAL) -> int:
    """Write the state of the fleet as a line of JSON, at once and after each change.

    It goes on until Ctrl-C, or until the service stops.

    For example:
      downloader events
      downloader events -n 1

    Args:
        count: End after so many.
    """
    with connect(service) as client, closing(client.events()) as snapshots:
        for snapshot in islice(snapshots, count):
            write_json(snapshot)
    return 0
