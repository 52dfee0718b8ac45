"""The output of `downloader submit`: progress, a line or JSON object for each job, a table at the end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from downloader.cli.output import write, write_json
from downloader.client import Job, Submitted
from downloader.printable import escape

ROWS = 40
"""Most rows of the table at the end; with more jobs, only those that failed or were refused are listed."""

WARNINGS = 20
"""Different warnings that are shown."""

STYLES = {
    "accepted": "green",
    "succeeded": "green",
    "refused": "red",
    "failed": "red",
    "cancelled": "yellow",
}
"""By state of a job."""


class Report:
    """Receives the answers and results of jobs, counts and shows them."""

    def __init__(self, *, wait: bool, as_json: bool, bars: Progress | None) -> None:
        self.urls: dict[str, str] = {}
        """The accepted jobs, by id."""
        self.failed = 0
        """Jobs that were refused or have failed."""
        self._wait, self._json, self._bars = wait, as_json, bars
        self._console = bars.console if bars is not None else Console(stderr=True)
        self._warnings: set[str] = set()
        self._bar = bars.add_task("submitted", total=None) if bars is not None else None
        self._shown = 0
        """Jobs that went well."""
        self._ended = 0
        self._bytes = 0
        self._good: list[tuple[str, ...]] = []
        self._bad: list[tuple[str, ...]] = []
        """Rows of the table, as many as may be shown."""

    def submitted(self, answer: Submitted) -> None:
        """A job was accepted or refused."""
        self._advance()
        for warning in answer.warnings:
            self._warn(warning)
        url, problem = str(answer.job.get("url", "")), answer.problem
        if problem is not None:
            shown = {"code": problem.code, "detail": problem.detail, "field": problem.field, "url": url}
            line = f"refused {problem.code} {escape(url)} {escape(str(problem))}"
            self._add(shown, line, ("refused", "", url, str(problem)))
            return
        self.urls[answer.id] = url
        if not self._wait:
            self._add(
                {"id": answer.id, "url": url},
                f"accepted {answer.id} {escape(url)}",
                ("accepted", answer.id, url, ""),
            )

    def waiting(self) -> None:
        """All jobs were submitted; `ended` is called from now on."""
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = self._bars.add_task("done", total=len(self.urls))

    def ended(self, job: Job) -> None:
        """A job has ended."""
        self._advance()
        self._ended += 1
        url = self.urls[job.id]
        document = {**job.model_dump(mode="json"), "url": url}
        if job.file is not None:
            self._bytes += job.file.size
            line = f"{job.state} {job.id} {job.file.size} {escape(url)}"
            self._add(document, line, (job.state, job.id, url, decimal(job.file.size)))
        else:
            line = f"{job.state} {job.id} {job.error_code} {escape(url)} {escape(job.error)}"
            self._add(document, line, (job.state, job.id, url, job.error))

    def interrupted(self) -> None:
        """Write a line on standard error, after Ctrl-C."""
        if self._bars is not None:
            self._bars.stop()  # otherwise a bar would stay above the text
        left = len(self.urls) - self._ended
        text = f"downloader: interrupted: {left} of {len(self.urls)} jobs have not ended, and go on"
        sys.stderr.write(f"{text} (see downloader jobs)\n")

    def summary(self) -> None:
        """The table at the end, on a terminal."""
        if self._json or not sys.stdout.isatty():
            return
        rows = [*self._good, *self._bad] if self._shown + self.failed <= ROWS else self._bad
        console = Console()
        if rows:
            console.print(_table(rows, details=any(row[3] for row in rows)))
        done = (
            f"{self._shown} downloaded, {decimal(self._bytes)}" if self._wait else f"{self._shown} accepted"
        )
        console.print(f"{done}; {self.failed} {'failed' if self._wait else 'refused'}", highlight=False)

    def _advance(self) -> None:
        if self._bars is not None and self._bar is not None:
            self._bars.advance(self._bar)

    def _warn(self, text: str) -> None:
        """Show a warning once for all jobs that have it."""
        if text not in self._warnings and len(self._warnings) < WARNINGS:
            self._warnings.add(text)
            self._console.print(f"downloader: {escape(text)}", markup=False, highlight=False, soft_wrap=True)

    def _add(self, document: Mapping[str, Any], line: str, row: tuple[str, ...]) -> None:
        good = row[0] in ("accepted", "succeeded")
        self.failed += not good
        self._shown += good
        rows = self._good if good else self._bad
        if len(rows) < ROWS:
            rows.append(row)
        if self._json:
            write_json(document)
        elif not sys.stdout.isatty():
            write(line)


def _table(rows: list[tuple[str, ...]], *, details: bool) -> Table:
    table = Table("state", "job", "url", *(["result"] if details else []))
    for state, job_id, url, detail in rows:
        style = STYLES.get(state, "")
        result = [Text(escape(detail), style="" if style == "green" else style)] if details else []
        table.add_row(Text(state, style=style), job_id, Text(escape(url), overflow="fold"), *result)
    return table


@contextlib.contextmanager
def open_report(*, wait: bool, as_json: bool) -> Iterator[Report]:
    """A report. If standard error is a terminal it shows the progress until the context ends.

    There is no progress if lines are printed to a terminal meanwhile.
    """
    if not sys.stderr.isatty() or (as_json and sys.stdout.isatty()):
        yield Report(wait=wait, as_json=as_json, bars=None)
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield Report(wait=wait, as_json=as_json, bars=bars)
