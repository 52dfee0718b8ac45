"""`downloader config` and `version`."""

from __future__ import annotations

import sys

from downloader import __version__
from downloader.cli.options import Config, load


def config(*, config: Config = None) -> None:
    """Print the effective configuration, without its secrets.

    It is the result of file, environment and defaults, as TOML.

    For example:
      downloader config -c config.toml
      DOWNLOADER_REDIS__URL=redis://localhost downloader config

    Args:
        config: Configuration file (TOML).
    """
    import tomli_w

    from downloader.config import redacted

    sys.stdout.write(tomli_w.dumps(redacted(load(config))))


def version() -> None:
    """Print the version.

    For example:
      downloader version
    """
    sys.stdout.write(f"{__version__}\n")
