"""`downloader plugins`, `config`, `version`: looking, without a service running."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from importlib.metadata import version as installed_version

from downloader.cli.flags import Config, Json

# The settings bring pydantic and trio along, rich takes its time too: neither is for `version` to wait for,
# so the commands import them.


def plugins(*, config: Config = None, json_: Json = False) -> None:
    """List the installed backends and storages, and which of them the configuration uses.

    Imports none of them. Exits with 2 if one that is configured is not installed, or more than once.

    Args:
        config: Configuration file (TOML).
        json_: Print a JSON array instead of a table.
    """
    from downloader.cli.plugin_list import list_plugins, show_plugins  # noqa: PLC0415 - see the top of the module
    from downloader.cli.settings import load  # noqa: PLC0415 - as above

    rows, problem = list_plugins(load(config))
    if json_:
        sys.stdout.write(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    else:
        show_plugins(rows)
    sys.stdout.flush()
    if problem is not None:
        raise problem


def config(*, config: Config = None) -> None:
    """Print the effective configuration as TOML: file, environment and defaults, without the secrets.

    Args:
        config: Configuration file (TOML).
    """
    import tomli_w  # noqa: PLC0415 - see the top of the module

    from downloader.cli.settings import load  # noqa: PLC0415 - as above
    from downloader.config import redacted  # noqa: PLC0415 - as above

    sys.stdout.write(tomli_w.dumps(redacted(load(config))))


def version() -> None:
    """Print the version."""
    sys.stdout.write(f"{installed_version('downloader')}\n")
