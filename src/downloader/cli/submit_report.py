"""The output of `downloader submit`: progress, a line or JSON object for each job, a table at the end."""

from __future__ import annotations

import contextlib
import sys
from collections import ChainMap, Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from downloader.cli.lists import Result
from downloader.cli.output import Cell, show_table, write, write_json
from downloader.client import Job, Submitted
from downloader.model import ErrorCode
from downloader.printable import escape

ROWS = 40
"""Most rows of the table at the end; with more jobs, only failures and refusals are listed."""

WARNINGS = 20
"""Most different warnings shown."""

STYLES = {
    "accepted": "green",
    "succeeded": "green",
    "refused": "red",
    "failed": "red",
    "cancelled": "yellow",
}
"""Colours by state of a job."""


class Report:
    """Receiver of responses and results: counts and shows jobs."""

    def __init__(
        self, *, wait: bool, as_json: bool, bars: Progress | None, write_result: Callable[[Result], object]
    ) -> None:
        self.urls: dict[str, str] = {}
        """The accepted jobs that have not ended, by id."""
        self._others = Counter[str]()
        """Number of jobs that were refused, failed or cancelled, by state."""
        self._wait, self._json, self._bars = wait, as_json, bars
        self._write_result = write_result
        self._console = bars.console if bars is not None else Console(stderr=True)
        self._warnings: set[str] = set()
        self._bar = bars.add_task("submitted", total=None) if bars is not None else None
        self._shown = 0
        """Number of accepted or downloaded jobs."""
        self._ended = 0
        self._bytes = 0
        self._good: list[Sequence[Cell]] = []
        self._bad: list[Sequence[Cell]] = []
        """Rows of the table, at most `ROWS`."""

    @property
    def failed(self) -> int:
        """Number of jobs that were refused, failed or cancelled."""
        return self._others.total()

    def submitted(self, submission: Submitted) -> None:
        """Report an accepted or refused job."""
        self._advance()
        for warning in submission.warnings:
            self._warn(warning)
        url, problem = str(submission.job.get("url", "")), submission.problem
        if problem is not None:
            shown = {"code": problem.code, "detail": problem.detail, "field": problem.field, "url": url}
            line = f"refused {problem.code} {escape(url)} {escape(str(problem))}"
            self._add(shown, line, ("refused", "", url, str(problem)))
            self._write_result(
                {"url": url, "state": "refused", "error_code": problem.code, "error": str(problem)}
            )
            return
        self.urls[submission.id] = url
        if not self._wait:
            self._add(
                {"id": submission.id, "url": url},
                f"accepted {submission.id} {escape(url)}",
                ("accepted", submission.id, url, ""),
            )
            self._write_result(_accepted(submission.id, url))

    def waiting(self) -> None:
        """Begin to count ended jobs; all jobs are submitted."""
        if self._bars is not None and self._bar is not None:
            self._bars.remove_task(self._bar)
            self._bar = self._bars.add_task("done", total=len(self.urls))

    def ended(self, job: Job) -> None:
        """Report an ended job."""
        self._advance()
        self._ended += 1
        url = self.urls.pop(job.id)
        document = {**job.model_dump(mode="json"), "url": url}
        more = [part.model_dump() for part in (job.response, job.file) if part is not None]
        self._write_result(dict(ChainMap(document, *more)))
        if job.file is not None:
            self._bytes += job.file.size
            line = f"{job.state} {job.id} {job.file.size} {escape(url)}"
            self._add(document, line, (job.state, job.id, url, decimal(job.file.size)))
        else:
            code = job.error_code or ErrorCode.NOT_MODIFIED  # the only success without a file
            line = f"{job.state} {job.id} {code} {escape(url)} {escape(job.error)}"
            self._add(document, line, (job.state, job.id, url, job.error or "not modified"))

    def interrupted(self) -> None:
        """Write a line on standard error, after Ctrl-C."""
        if self._bars is not None:
            self._bars.stop()  # otherwise a bar would stay above the text
        accepted = len(self.urls) + self._ended
        text = f"downloader: interrupted: {len(self.urls)} of {accepted} jobs have not ended, and go on"
        sys.stderr.write(f"{text} (see downloader jobs)\n")

    def summary(self) -> None:
        """Print the table at the end, on a terminal."""
        if self._json or not sys.stdout.isatty():
            return
        rows = [*self._good, *self._bad] if self._shown + self.failed <= ROWS else self._bad
        if rows:
            show_table(("state", "job", "url", "result"), rows)
        downloaded = (
            f"{self._shown} downloaded, {decimal(self._bytes)}" if self._wait else f"{self._shown} accepted"
        )
        others = ", ".join(f"{count} {state}" for state, count in self._others.items())
        write(f"{downloaded}; {others or ('0 failed' if self._wait else '0 refused')}")

    def close(self) -> None:
        """Write the results of the jobs that were waited for and have not ended."""
        for job_id, url in self.urls.items() if self._wait else ():
            self._write_result(_accepted(job_id, url))

    def _advance(self) -> None:
        if self._bars is not None and self._bar is not None:
            self._bars.advance(self._bar)

    def _warn(self, text: str) -> None:
        """Show a warning once, not for each job."""
        if text not in self._warnings and len(self._warnings) < WARNINGS:
            self._warnings.add(text)
            self._console.print(f"downloader: {escape(text)}", markup=False, highlight=False, soft_wrap=True)

    def _add(self, document: Mapping[str, Any], line: str, row: tuple[str, ...]) -> None:
        good = row[0] in ("accepted", "succeeded")
        if not good:
            self._others[row[0]] += 1
        self._shown += good
        rows = self._good if good else self._bad
        if len(rows) < ROWS:
            state, *others, detail = row
            style = STYLES.get(state, "")
            rows.append([(state, style), *others, (detail, style if not good else "")])
        if self._json:
            write_json(document)
        elif not sys.stdout.isatty():
            write(line)


def _accepted(job_id: str, url: str) -> Result:
    return {"url": url, "id": job_id, "state": "accepted"}


@contextlib.contextmanager
def open_report(*, wait: bool, as_json: bool, write_result: Callable[[Result], object]) -> Iterator[Report]:
    """Open a report, with progress bars if standard error is a terminal.

    There are no bars if standard output is a terminal that gets JSON lines.
    """
    report = partial(Report, wait=wait, as_json=as_json, write_result=write_result)
    if not sys.stderr.isatty() or (as_json and sys.stdout.isatty()):
        with contextlib.closing(report(bars=None)) as opened:
            yield opened
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as bars,
        contextlib.closing(report(bars=bars)) as opened,
    ):
        yield opened
