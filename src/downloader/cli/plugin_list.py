"""What `downloader plugins` lists, and how."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from downloader.config import Settings
from downloader.errors import PluginError
from downloader.observe import escape
from downloader.plugins import BUCKETS, KINDS, NOTIFIERS, STORAGES, PluginInfo, find, installed

_BUCKETS_PLUGIN = "s3"
"""Serves the buckets that jobs bring, configured or not: `[processor.s3]` has defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(PluginInfo):
    """A plugin that is installed, configured, or both."""

    configured: bool
    problem: str
    """Why it cannot be used though it is configured; empty if it can."""

    @property
    def use(self) -> str:
        """The last cell."""
        if not self.problem:
            return "yes" if self.configured else ""
        return "yes, but installed twice" if self.distribution or self.version else "yes, but not installed"


def list_plugins(settings: Settings) -> tuple[Sequence[Row], PluginError | None]:
    """A row for each plugin that is installed or configured, and the first problem with one; imports none."""
    used = {
        NOTIFIERS: {name: f"backends.{name}" for name in settings.backends},
        STORAGES: {settings.storage_name: "processor.filestorage"},
        BUCKETS: {_BUCKETS_PLUGIN: f"processor.{_BUCKETS_PLUGIN}"},
    }
    rows: list[Row] = []
    first: PluginError | None = None
    for group, places in used.items():
        problems: dict[str, str] = {}
        for name, place in places.items():
            try:
                find(group, name)
            except PluginError as error:
                problems[name] = str(error)
                first = first or PluginError(f"{place}: {error}")
        there = installed(group)
        for name in sorted(problems.keys() - {plugin.name for plugin in there}):
            there.append(PluginInfo(kind=KINDS[group], name=name, version="", distribution=""))
        rows += [
            Row(**asdict(plugin), configured=plugin.name in places, problem=problems.get(plugin.name, ""))
            for plugin in there
        ]
    return rows, first


def show_plugins(rows: Sequence[Row]) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            cells = (row.name, row.kind, row.version, row.distribution, row.use)
            sys.stdout.write("\t".join(escape(cell) for cell in cells).rstrip() + "\n")
        return
    table = Table("name", "kind", "version", "distribution", "configured", box=None, pad_edge=False)
    table.header_style = "dim"
    for row in rows:
        style = "red" if row.problem else "green"
        table.add_row(
            Text(escape(row.name), style="bold" if row.configured else ""),
            Text(row.kind),
            Text(escape(row.version)),
            Text(escape(row.distribution)),
            Text(row.use, style=style),
        )
    Console().print(table)
