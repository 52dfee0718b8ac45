"""What `downloader fetch` shows: bars and a table on a terminal, a line for each file elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from downloader.cli.fetch_folder import OutputFolder, file_name
from downloader.cli.fetch_record import Complete, Record
from downloader.cli.remote import write, write_json
from downloader.errors import StorageError
from downloader.model import ErrorCode
from downloader.observe import escape
from downloader.service import FetchProgress, FetchRequest, FetchResult, FetchState

BARS = 12
"""Number of files shown at once. The bar of the total counts all."""

ROWS = 40
"""Rows of the table at the end; beyond it only failures are listed."""

LABEL_CHARS = 32


class Report:
    """Receives the engine's events, gives files their names, and shows the progress."""

    def __init__(
        self, count: int, *, folder: OutputFolder, record: Record, as_json_lines: bool, bars: Progress | None
    ) -> None:
        self.failed = 0
        self._count = count
        self._folder = folder
        self._record = record
        self._present: dict[str, Complete] = {}
        """Files that are there, by URL, while their origins are asked whether they have changed."""
        self._json = as_json_lines
        self._bars = bars
        self._tasks: dict[int, TaskID] = {}
        self._results: list[FetchResult] = []
        self._total = bars.add_task("files", total=count, whole=True) if bars is not None else None

    def missing(self, requests: Iterable[FetchRequest], *, check: bool) -> list[FetchRequest]:
        """The requests to send; the files of the others are there, and are reported as skipped.

        With `check` the origins of all files are asked; see `_place` for what becomes of the answers.
        """
        missing = []
        for request in requests:
            present = self._record.intact(request.url)
            if present is None:
                missing.append(request)
            elif check:
                self._present[request.url] = present
                missing.append(replace(request, headers=present.condition))
            else:
                self._end(self._skipped(present))
        return missing

    def event(self, event: FetchProgress | FetchResult) -> None:
        """The engine's `on_event`."""
        if isinstance(event, FetchProgress):
            self._show(event)
        else:
            self._end(event)

    def summary(self) -> None:
        """The table at the end, on a terminal."""
        if self._json or not sys.stdout.isatty():
            return
        rows = sorted((r for r in self._results if not r.skipped), key=lambda result: result.index)
        if len(rows) > ROWS:
            rows = [result for result in rows if not result.ok][:ROWS]
        console = Console()
        if rows:
            console.print(_table(rows))
        console.print(self._counts(), highlight=False)

    def interrupted(self) -> None:
        """Write a line on standard error, after Ctrl-C."""
        if self._bars is not None:
            self._bars.stop()  # otherwise a bar would stay above the text
        text = f"downloader: interrupted: {self._counts()}\n"
        if sizes := self._folder.parts():
            files = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
            text += f"downloader: the same command resumes {files}, of which {decimal(sum(sizes))} are here\n"
        sys.stderr.write(text)

    def _counts(self) -> str:
        good = [result for result in self._results if result.ok and not result.skipped]
        counts = [f"{len(good)} fetched, {decimal(sum(r.size for r in good))}"]
        if skipped := sum(result.skipped for result in self._results):
            counts.append(f"{skipped} skipped")
        counts.append(f"{self.failed} failed")
        if left := self._count - len(self._results):
            counts.append(f"{left} not fetched")
        return "; ".join(counts)

    def _show(self, event: FetchProgress) -> None:
        if self._bars is None:
            return
        task = self._tasks.get(event.index)
        if event.state is not FetchState.RUNNING:
            if task is not None:
                self._bars.remove_task(self._tasks.pop(event.index))
        elif task is not None:
            self._bars.update(task, completed=event.received_bytes, total=event.total_bytes)
        elif len(self._tasks) < BARS:
            label = file_name(event.url)[:LABEL_CHARS]
            self._tasks[event.index] = self._bars.add_task(
                label, completed=event.received_bytes, total=event.total_bytes, whole=False
            )

    def _end(self, result: FetchResult) -> None:
        if self._bars is not None and self._total is not None:
            if result.index in self._tasks:
                self._bars.remove_task(self._tasks.pop(result.index))
            self._bars.advance(self._total)
        placed = self._place(result)
        self.failed += not placed.ok
        self._results.append(placed)
        if self._json:
            write_json(result_fields(placed))
        elif not sys.stdout.isatty():
            write(_line(placed))

    def _place(self, result: FetchResult) -> FetchResult:
        """The result with the final path of its file, which is recorded."""
        present = self._present.get(result.url)
        if present is not None and result.error_code == ErrorCode.NOT_MODIFIED:
            return self._skipped(present, result)
        if result.skipped:
            return result
        if not result.ok:
            return replace(result, path="")
        stored = Path(result.path)
        try:
            if present is not None and self._record.intact(result.url):
                path = self._record.path(present)
                stored.replace(path)
            else:
                path = self._folder.place(
                    stored, url=result.url, suggested=result.filename, mime_type=result.mime_type
                )
            placed = replace(result, path=str(path))
            self._record.add(placed)
        except OSError as error:
            text = f"{error.filename} cannot be written: {error.strerror}"
        except StorageError as error:
            text = str(error)
        else:
            unchanged = present is not None and present.sha256 == result.sha256
            return self._skipped(present, placed) if present is not None and unchanged else placed
        return replace(result, ok=False, error=text, error_code="storage", path="")

    def _skipped(self, present: Complete, result: FetchResult | None = None) -> FetchResult:
        """The result for a file that is there; `result` is what its origin answered."""
        return replace(
            result or FetchResult(index=-1, url=present.url, ok=True),
            ok=True,
            skipped=True,
            error="",
            error_code="",
            path=str(self._record.path(present)),
            size=present.size,
            sha256=present.sha256,
            mime_type=present.mime_type,
        )


@contextlib.contextmanager
def open_report(count: int, *, folder: OutputFolder, record: Record, as_json_lines: bool) -> Iterator[Report]:
    """A report on `count` files. If standard error is a terminal it shows bars until the context ends.

    There are no bars if JSON lines are printed to a terminal.
    """
    if not sys.stderr.isatty() or (as_json_lines and sys.stdout.isatty()):
        yield Report(count, folder=folder, record=record, as_json_lines=as_json_lines, bars=None)
        return
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Amount(),
        _Speed(),
        TimeRemainingColumn(compact=True),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield Report(count, folder=folder, record=record, as_json_lines=as_json_lines, bars=bars)


class _Amount(ProgressColumn):
    """Bytes of a file, files of the whole."""

    def __init__(self) -> None:
        super().__init__()
        self._files, self._bytes = MofNCompleteColumn(), DownloadColumn()

    def render(self, task: Task) -> Text:
        """See rich."""
        return self._files.render(task) if task.fields["whole"] else self._bytes.render(task)


class _Speed(TransferSpeedColumn):
    """The speed of a file; the line of the whole run has none."""

    def render(self, task: Task) -> Text:
        """See rich."""
        return Text() if task.fields["whole"] else super().render(task)


def result_fields(result: FetchResult) -> dict[str, Any]:
    """What `--json` prints of a file."""
    fields = (
        *("url", "ok", "skipped", "path", "size", "sha256", "mime_type"),
        *("error", "error_code", "response_code", "attempts"),
    )
    return {**{name: getattr(result, name) for name in fields}, "seconds": round(result.seconds, 3)}


def _line(result: FetchResult) -> str:
    if result.ok:
        word = "skipped" if result.skipped else "ok"
        return f"{word} {result.size} {escape(result.path)} {escape(result.url)}"
    return f"failed {result.error_code} {escape(result.url)} {escape(result.error)}"


def _table(results: list[FetchResult]) -> Table:
    table = Table("file", "size", "type", "seconds", "result")
    for result in results:
        shown = result.path if result.ok else result.url
        outcome = Text("ok", style="green") if result.ok else Text(escape(result.error), style="red")
        table.add_row(
            Text(escape(shown), overflow="fold"),
            Text(decimal(result.size) if result.ok else "", justify="right"),
            Text(escape(result.mime_type)),
            Text(f"{result.seconds:.1f}", justify="right"),
            outcome,
        )
    return table
