"""The output of `downloader fetch`: a line for each file; on a terminal bars and a table."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.filesize import decimal

from downloader.cli.fetch_folder import OutputFolder, Record, file_name
from downloader.cli.output import Cell, show_table, write, write_json
from downloader.errors import StorageError
from downloader.oneshot import FetchResult
from downloader.printable import escape

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress, TaskID

COLUMNS: Mapping[str, Callable[[FetchResult], Cell]] = {
    "file": lambda result: result.path if result.ok else result.url,
    "size": lambda result: decimal(result.size) if result.ok else "",
    "type": lambda result: result.mime_type,
    "seconds": lambda result: f"{result.seconds:.1f}",
    "result": lambda result: ("ok", "green") if result.ok else (result.error, "red"),
}
"""The cells of the table by column."""

BARS = 12
"""Most files with a bar at once. The bar of the run counts all files."""

LABEL_CHARS = 32

ROWS = 40
"""Most rows of the table at the end; with more files, only failures are listed."""


class Report:
    """Names the files of a run, and prints the results."""

    def __init__(
        self, count: int, *, folder: OutputFolder, record: Record, as_json_lines: bool, bars: Bars | None
    ) -> None:
        self.failed = 0
        self._fetched = self._fetched_bytes = self._skipped = 0
        self._count = count
        self._folder = folder
        self._record = record
        self._json = as_json_lines
        self._table = not as_json_lines and sys.stdout.isatty()
        self._rows: list[FetchResult] = []
        """The first `ROWS` results."""
        self._failures: list[FetchResult] = []
        """The first `ROWS` failures."""
        self._bars = bars

    def skip(self, url: str) -> bool:
        """See `fetch_files`: report a file that an earlier run completed; false if there is none."""
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

    def progress(self, url: str, received: int | None, total: int | None) -> None:
        """See `fetch_files`."""
        if self._bars is not None:
            self._bars.show(url, received, total)

    def ended(self, result: FetchResult) -> None:
        """See `fetch_files`: name and report a file."""
        placed = self._place(result) if result.ok else result
        if placed.ok:
            self._fetched += 1
            self._fetched_bytes += placed.size
        else:
            self.failed += 1
        if self._table:
            for rows in [self._rows] if placed.ok else [self._rows, self._failures]:
                if len(rows) < ROWS:
                    rows.append(placed)
        self._write(placed)

    def summary(self) -> None:
        """Print the table at the end, on a terminal."""
        if not self._table:
            return
        rows = self._rows if self._fetched + self.failed <= ROWS else self._failures
        if rows:
            ordered = sorted(rows, key=lambda result: result.index)
            cells = [[cell(result) for cell in COLUMNS.values()] for result in ordered]
            show_table(list(COLUMNS), cells, right=("size", "seconds"))
        write(self._counts())

    def interrupted(self) -> None:
        """Write a line on standard error, after Ctrl-C."""
        if self._bars is not None:
            self._bars.stop()  # otherwise a bar would stay above the text
        text = f"downloader: interrupted: {self._counts()}\n"
        if sizes := self._folder.partial_sizes():
            files = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
            text += f"downloader: the same command resumes {files}, of which {decimal(sum(sizes))} are here\n"
        sys.stderr.write(text)

    def _counts(self) -> str:
        counts = [f"{self._fetched} fetched, {decimal(self._fetched_bytes)}"]
        if self._skipped:
            counts.append(f"{self._skipped} skipped")
        counts.append(f"{self.failed} failed")
        if missing := self._count - self._fetched - self.failed - self._skipped:
            counts.append(f"{missing} not fetched")
        return "; ".join(counts)

    def _write(self, result: FetchResult) -> None:
        if self._bars is not None:
            self._bars.advance()
        if self._json:
            write_json(result_fields(result))
        elif not self._table:
            write(_line(result))

    def _place(self, result: FetchResult) -> FetchResult:
        """Name and record a file; return the result with the final path, or with the failure."""
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


class Bars:
    """Bars for the first files in progress, and one for the whole run."""

    def __init__(self, live: Live, files: Progress, run: Progress, count: int) -> None:
        self.stop = live.stop
        self._files, self._run = files, run
        self._total = run.add_task("files", total=count)
        self._tasks: dict[str, TaskID] = {}
        """The bars of files, by URL."""

    def show(self, url: str, received: int | None, total: int | None) -> None:
        """Add, move or remove the bar of a file; `received` is `None` at the end."""
        task = self._tasks.get(url)
        if received is None:
            if task is not None:
                self._files.remove_task(self._tasks.pop(url))
        elif task is not None:
            self._files.update(task, completed=received, total=total)
        elif len(self._tasks) < BARS:
            label = file_name(url)[:LABEL_CHARS]
            self._tasks[url] = self._files.add_task(label, completed=received, total=total)

    def advance(self) -> None:
        """Count a file that has ended."""
        self._run.advance(self._total)


@contextlib.contextmanager
def _open_bars(count: int) -> Iterator[Bars]:
    """Show bars on standard error until the context ends."""
    # Imported here, because the import takes longer than a small download.
    from rich import progress
    from rich.console import Console, Group
    from rich.live import Live

    def bars(*amounts: progress.ProgressColumn) -> progress.Progress:
        label = progress.TextColumn("{task.description}", markup=False)
        left = progress.TimeRemainingColumn(compact=True)
        return progress.Progress(label, progress.BarColumn(), *amounts, left)

    files = bars(progress.DownloadColumn(), progress.TransferSpeedColumn())
    run = bars(progress.MofNCompleteColumn())
    with Live(Group(files, run), console=Console(stderr=True), transient=True) as live:
        yield Bars(live, files, run, count)


@contextlib.contextmanager
def open_report(count: int, *, folder: OutputFolder, as_json_lines: bool) -> Iterator[Report]:
    """Open a report on `count` files, with bars if standard error is a terminal.

    There are no bars if JSON lines are printed to a terminal.

    Raises:
        ConfigError: the record of the folder cannot be read.
    """
    with contextlib.closing(Record(folder)) as record, contextlib.ExitStack() as stack:
        shows_bars = sys.stderr.isatty() and not (as_json_lines and sys.stdout.isatty())
        bars = stack.enter_context(_open_bars(count)) if shows_bars else None
        yield Report(count, folder=folder, record=record, as_json_lines=as_json_lines, bars=bars)


def result_fields(result: FetchResult) -> dict[str, Any]:
    """The fields of `--json` for a file."""
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
