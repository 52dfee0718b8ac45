"""Output of commands: lines, JSON, results and tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from downloader.printable import escape

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table

Cell = str | tuple[str, str]
"""A text, or a text with a rich style for a terminal."""


def write_result(
    result: BaseModel | Mapping[str, Any], title: str, rows: Iterable[tuple[str, str]] = (), *, as_json: bool
) -> None:
    """Write a result: a line of JSON for programs; for people a title, and a line for each detail."""
    if as_json:
        write_json(result)
        return
    shown = list(rows)
    width = max((len(name) for name, _ in shown), default=0)
    write("\n".join([escape(title), *(f"  {name:<{width}}  {escape(text)}" for name, text in shown)]))


def details(result: BaseModel, **labels: str) -> Iterator[tuple[str, str]]:
    """The members of a result that are neither empty nor 0, as rows for people.

    Args:
        result: one of the models of `downloader.wire`.
        labels: by member, the name of its row.
    """
    for name, label in labels.items():
        if value := getattr(result, name):
            yield label, local_time(value) if isinstance(value, datetime) else str(value)


def local_time(moment: datetime | None) -> str:
    """A time for people, in the local time zone."""
    return "" if moment is None else f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def write_json(result: BaseModel | Mapping[str, Any]) -> None:
    """Write a line of `--json`."""
    write(json.dumps(result if isinstance(result, Mapping) else result.model_dump(mode="json")))


def write(line: str) -> None:
    """Write a line to standard output, unbuffered."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, right: Collection[str] = (), empty: str = ""
) -> None:
    """Write rows as a table on a terminal, and as tab-separated lines elsewhere.

    Args:
        columns: the names of the columns.
        rows: a cell for each column.
        right: the columns with numbers.
        empty: written on a terminal instead of a table without rows.
    """
    if not sys.stdout.isatty():
        for row in rows:
            write("\t".join(escape(text) for text, _ in map(_styled, row)).rstrip())
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", show_header=any(columns))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    print_rows(table, rows, empty=empty)


def print_rows(table: Table, rows: Iterable[Sequence[Cell]], *, empty: str = "") -> None:
    """Print a rich table with the rows on the terminal; without rows, print the text `empty`."""
    from rich.console import Console
    from rich.text import Text

    for row in rows:
        table.add_row(*(Text(escape(text), style) for text, style in map(_styled, row)))
    Console().print(table if table.row_count or not empty else Text(empty, style="dim"))


def _styled(cell: Cell) -> tuple[str, str]:
    return (cell, "") if isinstance(cell, str) else cell
