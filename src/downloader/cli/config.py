"""`downloader config` and `version`."""

from __future__ import annotations

import sys

from downloader import __version__
from downloader.cli.options import Config, Json, load


def config(*, config: Config = None, json_: Json = False) -> None:
    """Print the effective configuration, without its secrets.

    It is the result of file, environment and defaults, as TOML.

    For example:
      downloader config -c config.toml
      DOWNLOADER_REDIS__URL=redis://localhost downloader config

    Args:
        config: Configuration file (TOML).
        json_: Print a JSON object instead.
    """
    import json

    import tomli_w

    from downloader.config import redacted

    found = redacted(load(config))
    # TOML has dates and times, which a plugin's table may have; JSON has not.
    sys.stdout.write(f"{json.dumps(found, indent=2, default=str)}\n" if json_ else tomli_w.dumps(found))


def version(*, json_: Json = False) -> None:
    """Print the version.

    For example:
      downloader version

    Args:
        json_: Print a JSON object.
    """
    sys.stdout.write(f'{{"version": "{__version__}"}}\n' if json_ else f"{__version__}\n")
