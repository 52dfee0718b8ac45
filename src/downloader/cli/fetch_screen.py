"""The screen of `downloader fetch` on a terminal during the run: bars.

A module of its own, because importing rich takes longer than a small download.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
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
from rich.text import Text

from downloader.cli.fetch_folder import file_name

BARS = 12
"""Most files with a bar at once. The bar of the total counts all files."""

LABEL_CHARS = 32


class Bars:
    """Bars for the whole run and for the first files in progress."""

    def __init__(self, progress: Progress, count: int) -> None:
        self.stop = progress.stop
        self._progress = progress
        self._total = progress.add_task("files", total=count, whole=True)
        self._tasks: dict[str, TaskID] = {}
        """The bars of files, by URL."""

    def show(self, url: str, received: int | None, total: int | None) -> None:
        """Add, move or remove the bar of a file; `received` is `None` at the end."""
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
    """Show bars on standard error until the context ends."""
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Amount(),
        _Speed(),
        TimeRemainingColumn(compact=True),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bars(progress, count)


class _Amount(ProgressColumn):
    """Bytes for a file; number of files for the whole run."""

    def __init__(self) -> None:
        super().__init__()
        self._files, self._bytes = MofNCompleteColumn(), DownloadColumn()

    def render(self, task: Task) -> Text:
        """See rich."""
        return self._files.render(task) if task.fields["whole"] else self._bytes.render(task)


class _Speed(TransferSpeedColumn):
    """The speed of a file; empty for the whole run."""

    def render(self, task: Task) -> Text:
        """See rich."""
        return Text() if task.fields["whole"] else super().render(task)
