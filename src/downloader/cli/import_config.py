"""`downloader import-config`: the predecessor's configuration as ours."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from downloader.errors import ConfigError


def import_config(file: Annotated[Path, Parameter(name="FILE", allow_leading_hyphen=True)], /) -> None:
    """Print the predecessor's configuration as a TOML file for this service.

    What has changed, and what has no counterpart, has a comment there. The page
    docs/migration.md tells what else differs, and how to change over.

    For example:
      downloader import-config config.json > config.toml
      downloader config -c config.toml

    Args:
        file: The predecessor's configuration (JSON), or - for standard input.
    """
    from downloader.config import import_config as convert
    from downloader.config import load_settings

    name = "standard input" if str(file) == "-" else str(file)
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        converted = convert(text)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    with tempfile.NamedTemporaryFile("w", suffix=".toml", encoding="utf-8") as made:
        made.write(converted)
        made.flush()
        try:
            load_settings(Path(made.name), environ={}, overrides={})
        except ConfigError as error:
            lines = (str(error), *error.others)
            raise ConfigError(*(line.replace(made.name, f"{name}, converted", 1) for line in lines)) from None
    sys.stdout.write(converted)
