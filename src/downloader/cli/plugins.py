"""`downloader plugins`: what is installed, and which of it the configuration uses."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from downloader.cli.options import Config, Json, load
from downloader.errors import PluginError

if TYPE_CHECKING:
    from downloader.config import Settings

Row = dict[str, Any]
"""A plugin's `kind`, `name`, `version` and `distribution`; whether it is `configured`; and why it cannot be
used though it is, as `problem`, empty if it can."""


def plugins(*, config: Config = None, json_: Json = False) -> None:
    """List the installed backends and storages.

    Says which of them the configuration uses, and imports none. The exit status
    is 2 if a configured one is not installed, is installed twice, or lacks a
    package.

    For example:
      downloader plugins
      downloader plugins -c config.toml --json

    Args:
        config: Configuration file (TOML).
        json_: Print a JSON array instead of a table.
    """
    rows, problem = list_plugins(load(config))
    if json_:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        _show(rows)
    sys.stdout.flush()
    if problem is not None:
        raise problem


def list_plugins(settings: Settings) -> tuple[Sequence[Row], PluginError | None]:
    """A row for each plugin that is installed or configured, and the first problem with one; imports none."""
    from downloader.plugins import (
        BUCKETS,
        KINDS,
        NOTIFIERS,
        STORAGES,
        PluginInfo,
        find,
        installed,
        missing_package,
    )
    from downloader.storage import OWN_BUCKETS

    own_buckets = settings.processor.s3.is_set or not missing_package(BUCKETS, OWN_BUCKETS)
    used = {
        NOTIFIERS: {name: f"backends.{name}" for name in settings.backends},
        STORAGES: {settings.storage_name: "processor.filestorage"},
        BUCKETS: {OWN_BUCKETS: f"processor.{OWN_BUCKETS}"} if own_buckets else {},
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
            else:
                problems[name] = missing_package(group, name)
            if problems[name] and first is None:
                first = PluginError(f"{place}: {problems[name]}")
        found = installed(group)
        missing = places.keys() - {plugin.name for plugin in found}
        found += [
            PluginInfo(kind=KINDS[group], name=name, version="", distribution="") for name in sorted(missing)
        ]
        rows += [
            {
                **asdict(plugin),
                "configured": plugin.name in places,
                "problem": problems.get(plugin.name, ""),
            }
            for plugin in found
        ]
    return rows, first


def _use(row: Row) -> str:
    if not row["problem"]:
        return "yes" if row["configured"] else ""
    if not row["distribution"] and not row["version"]:
        return "yes, but not installed"
    return f"yes, but {row['problem']}" if row["problem"].startswith("needs ") else "yes, but installed twice"


def _show(rows: Sequence[Row]) -> None:
    """A table on a terminal, tab-separated lines elsewhere."""
    from downloader.printable import escape

    columns = ("name", "kind", "version", "distribution")
    cells = [[*(escape(row[column]) for column in columns), _use(row)] for row in rows]
    if not sys.stdout.isatty():
        sys.stdout.writelines("\t".join(line).rstrip() + "\n" for line in cells)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, "configured", box=None, pad_edge=False, header_style="dim")
    for row, (name, *rest, use) in zip(rows, cells, strict=True):
        table.add_row(
            Text(name, style="bold" if row["configured"] else ""),
            *map(Text, rest),
            Text(use, style="red" if row["problem"] else "green"),
        )
    Console().print(table)
