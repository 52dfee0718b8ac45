"""`downloader jobs` and `events`: lists of jobs, and the fleet's state as it changes."""

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

from downloader.cli.options import LOCAL, NO_FILTERS, Filters, Json, Service, connect
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
"""Each look goes back by this time, because a job is listed when its callback has ended, by the time of the
end of the download. Jobs whose callback takes longer are missed."""

FOLLOWED = 10
"""Jobs of the past that `--follow` begins with, like `tail -f`."""

WIDE = 120
"""Columns of a terminal that has room for URLs."""


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

    Without --state and --callback it lists the jobs that are being downloaded.
    A terminal shows a table, a pipe gets tab-separated lines. Lists of jobs that
    have ended begin with the newest; with --follow the newest come last, and
    further ones when they and their callbacks have ended.

    For example:
      downloader jobs
      downloader jobs --state failed --since 2h --error-code timeout
      downloader jobs --callback failed --aggr-id example.org -n 20
      downloader jobs --state pending --aggr-id example.org
      downloader jobs --state failed --follow

    Args:
        state: State of the download; pending needs --aggr-id.
        callback: Only those whose callback failed or succeeded.
        count: At most so many.
        follow: Go on with the jobs that end from now on, until Ctrl-C.
        json_: Write a JSON object for each.
    """
    if state is None and callback is None:
        state = "running"
    if follow and callback is None and state in ("pending", "running"):
        raise ConfigError("--follow needs --callback, or --state succeeded, failed or cancelled")
    with connect(service) as client:
        find = partial(client.jobs, state=state, callback=callback, **filters.fields())
        if follow:
            by_callback = callback == "failed"
            _follow(find, filters.since, count or FOLLOWED, by_callback=by_callback, as_json=json_)
        with closing(find()) as rows:
            shown = _show(islice(rows, count), as_json=json_)
    if not shown and not json_ and sys.stdout.isatty():
        write("no such jobs")
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
    """Print the newest jobs, the newest last, and then those that end, until Ctrl-C."""

    def ended_at(row: ListedJob) -> datetime | None:
        return row.failed_at if by_callback else row.finished_at

    newest = list(islice(find(since=since), count))
    shown = bool(_show(reversed(newest), as_json=as_json))
    # Times are the service's: its clock may differ from ours.
    last = max((at for row in newest if (at := ended_at(row))), default=None)
    rows = list(find(since=last - LATE)) if last else []
    known = {(row.id, at) for row in rows if last and (at := ended_at(row)) and at <= last}
    while True:
        time.sleep(FOLLOW_S)
        rows = list(find(since=last - LATE if last else since))
        fresh = [row for row in rows if (row.id, ended_at(row)) not in known]
        if fresh and as_json:
            _show(reversed(fresh), as_json=True)
        elif fresh:
            _list(fresh[::-1], head=not shown)
        shown = shown or bool(fresh)
        last = max((at for row in rows if (at := ended_at(row))), default=last)
        known = {(row.id, at) for row in rows if (at := ended_at(row))}


def _list(rows: Sequence[ListedJob], *, head: bool) -> None:
    """Rows of a table on a terminal, tab-separated lines elsewhere."""
    from downloader.cli.submit_report import STYLES

    cells: list[list[Cell]] = [
        [
            row.id,
            (row.state, STYLES.get(row.state, "")),
            (row.callback or "", STYLES.get(row.callback or "", "")),
            local_time(row.finished_at),
            row.aggr_id,
            row.error,
            row.error_code,
            row.destination,
            row.url,
        ]
        for row in rows
    ]
    if not sys.stdout.isatty():
        show_table((), cells)
        return
    from rich.console import Console
    from rich.table import Table

    # Fixed widths except for texts, so that the columns of all pages line up.
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", show_header=head, expand=True)
    for name, width in (("job", 14), ("state", 9), ("callback", 9), ("ended", 11)):
        table.add_column(name, width=width, no_wrap=True)
    texts = {"aggregation": 2, "error": 3}
    if Console().width >= WIDE:
        texts |= {"code": 1, "destination": 2, "url": 3}
    for name, ratio in texts.items():
        table.add_column(name, ratio=ratio, no_wrap=True)
    for row in cells:
        row[3] = str(row[3])[5:16]  # without year and seconds
    print_rows(table, [row[: len(table.columns)] for row in cells])
