"""What `downloader fetch` shows: bars and a table on a terminal, a line for each file elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
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
from downloader.cli.fetch_record import Record
from downloader.cli.remote import write, write_json
from downloader.errors import StorageError
from downloader.oneshot import FetchResult
from downloader.printable import escape

BARS = 12
"""Number of files shown at once. The bar of the total counts all."""

ROWS = 40
"""Rows of the table at the end; beyond it only failures are listed."""

LABEL_CHARS = 32


class Report:
    """Takes the results of a run, gives files their names, and shows the progress."""

    def __init__(
        self, count: int, *, folder: OutputFolder, record: Record, as_json_lines: bool, bars: Progress | None
    ) -> None:
        self.failed = 0
        self._fetched = self._fetched_bytes = self._skipped = 0
        self._count = count
        self._folder = folder
        self._record = record
        self._json = as_json_lines
        self._table = not as_json_lines and sys.stdout.isatty()
        self._rows: list[FetchResult] = []
        """For the table: the first results, and then the first failures."""
        self._failures: list[FetchResult] = []
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        """The bars of files, by URL."""
        self._total = bars.add_task("files", total=count, whole=True) if bars is not None else None
        self.progress = self._show if bars is not None else None
        """The engine's `on_progress`."""

    def skip(self, url: str) -> bool:
        """The engine's `skip`: whether the file is there. It is reported then."""
        present = self._record.intact(url)
        if present is None:
            return False
        self._skipped += 1
        self._write(
            FetchResult(
                index=-1,
                url=url,
                ok=True,
                skipped=True,
                path=str(self._folder.folder / present.name),
                size=present.size,
                sha256=present.sha256,
                mime_type=present.mime_type,
            )
        )
        return True

    def ended(self, result: FetchResult) -> None:
        """The engine's `on_result`: give the file its name, and report it."""
        placed = self._place(result) if result.ok else result
        if placed.ok:
            self._fetched += 1
            self._fetched_bytes += placed.size
        else:
            self.failed += 1
        if self._table:
            self._keep_row(placed)
        self._write(placed)

    def summary(self) -> None:
        """The table at the end, on a terminal."""
        if not self._table:
            return
        rows = self._rows if self._fetched + self.failed <= ROWS else self._failures
        console = Console()
        if rows:
            console.print(_table(sorted(rows, key=lambda result: result.index)))
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
        counts = [f"{self._fetched} fetched, {decimal(self._fetched_bytes)}"]
        if self._skipped:
            counts.append(f"{self._skipped} skipped")
        counts.append(f"{self.failed} failed")
        if left := self._count - self._fetched - self.failed - self._skipped:
            counts.append(f"{left} not fetched")
        return "; ".join(counts)

    def _keep_row(self, result: FetchResult) -> None:
        for kept, wanted in ((self._rows, True), (self._failures, not result.ok)):
            if wanted and len(kept) < ROWS:
                kept.append(result)

    def _show(self, url: str, received: int | None, total: int | None) -> None:
        """Move the bar of a file, or begin or remove it."""
        assert self._bars is not None
        task = self._tasks.get(url)
        if received is None:
            if task is not None:
                self._bars.remove_task(self._tasks.pop(url))
        elif task is not None:
            self._bars.update(task, completed=received, total=total)
        elif len(self._tasks) < BARS:
            label = file_name(url)[:LABEL_CHARS]
            self._tasks[url] = self._bars.add_task(label, completed=received, total=total, whole=False)

    def _write(self, result: FetchResult) -> None:
        if self._bars is not None and self._total is not None:
            self._bars.advance(self._total)
        if self._json:
            write_json(result_fields(result))
        elif not self._table:
            write(_line(result))

    def _place(self, result: FetchResult) -> FetchResult:
        """The result with the final path of its file, which is recorded."""
        try:
            path = self._folder.place(
                Path(result.path), url=result.url, suggested=result.filename, mime_type=result.mime_type
            )
            placed = replace(result, path=str(path))
            self._record.add(placed)
        except OSError as error:
            text = f"{error.filename} cannot be written: {error.strerror}"
        except StorageError as error:
            text = str(error)
        else:
            return placed
        return replace(result, ok=False, error=text, error_code="storage", path="")


@contextlib.contextmanager
def open_report(count: int, *, folder: OutputFolder, as_json_lines: bool) -> Iterator[Report]:
    """A report on `count` files. If standard error is a terminal it shows bars until the context ends.

    There are no bars if JSON lines are printed to a terminal.

    Raises:
        ConfigError: the record of the folder cannot be read.
    """
    record = Record(folder)
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
