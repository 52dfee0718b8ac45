"""`downloader plugins`, `config`, `version`: looking, without a service running."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.metadata import version as installed_version

from downloader.cli._flags import Config, Json

# The settings bring pydantic and trio along, rich takes its time too: neither is for `version` to wait for,
# so the commands import them.


def plugins(*, config: Config = None, json_: Json = False) -> None:
    """List the installed backends and storages, and which of them the configuration uses.

    Args:
        config: Configuration file (TOML).
        json_: Print a JSON array instead of a table.
    """
    from rich.console import Console  # noqa: PLC0415 - see the top of the module
    from rich.table import Table  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    from downloader.cli._settings import load  # noqa: PLC0415 - as above
    from downloader.registry import NOTIFIERS, STORAGES, installed  # noqa: PLC0415 - as above

    settings = load(config)
    used = {("notifier", name) for name in settings.backends} | {("storage", settings.storage_name)}
    rows = [
        {**asdict(plugin), "configured": (plugin.kind, plugin.name) in used}
        for group in (NOTIFIERS, STORAGES)
        for plugin in installed(group)
    ]
    if json_:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    table = Table("name", "kind", "version", "distribution", "configured")
    for row in rows:
        cells = [
            row["name"],
            row["kind"],
            row["version"],
            row["distribution"],
            "yes" if row["configured"] else "",
        ]
        table.add_row(*(Text(str(cell)) for cell in cells))
    Console().print(table)


def config(*, config: Config = None) -> None:
    """Print the effective configuration as TOML: file, environment and defaults, without the secrets.

    Args:
        config: Configuration file (TOML).
    """
    import tomli_w  # noqa: PLC0415 - see the top of the module

    from downloader.cli._settings import load  # noqa: PLC0415 - as above
    from downloader.redaction import redacted  # noqa: PLC0415 - as above

    sys.stdout.write(tomli_w.dumps(redacted(load(config))))


def version() -> None:
    """Print the version."""
    sys.stdout.write(f"{installed_version('downloader')}\n")
