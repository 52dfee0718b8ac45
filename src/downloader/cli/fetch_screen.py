"""What `downloader fetch` shows on a terminal: bars while it runs, a table at the end.

Apart from the report, because rich takes longer to import than a small download takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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

from downloader.cli.fetch_folder import file_name
from downloader.oneshot import FetchResult
from downloader.printable import escape

BARS = 12
"""Number of files shown at once. The bar of the total counts all."""

LABEL_CHARS = 32


class Bars:
    """A bar for the whole run, and for each of the first files in progress."""

    def __init__(self, progress: Progress, count: int) -> None:
        self.stop = progress.stop
        self._progress = progress
        self._total = progress.add_task("files", total=count, whole=True)
        self._tasks: dict[str, TaskID] = {}
        """The bars of files, by URL."""

    def show(self, url: str, received: int | None, total: int | None) -> None:
        """The engine's `on_progress`: begin, move or remove the bar of a file."""
        task = self._tasks.get(url)
        if received is None:
            if task is not None:
                self._progress.remove_task(self._tasks.pop(url))
        elif task is not None:
            self._progress.update(task, completed=received, total=total)
        elif len(self._tasks) < BARS:
            label = file_name(url)[:LABEL_CHARS]
            self._tasks[url] = self._progress.add_task(label, completed=received, total=total, whole=False)

    def advance(self) -> None:
        """Count a file that has ended."""
        self._progress.advance(self._total)


@contextlib.contextmanager
def open_bars(count: int) -> Iterator[Bars]:
    """Bars on standard error until the context ends."""
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Amount(),
        _Speed(),
        TimeRemainingColumn(compact=True),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bars(progress, count)


def print_table(rows: list[FetchResult], counts: str) -> None:
    """Print a row for each result, if there is one, and a line of counts."""
    console = Console()
    if rows:
        console.print(_table(rows))
    console.print(counts, highlight=False)


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
