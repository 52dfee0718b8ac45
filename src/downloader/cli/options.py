"""Flags common to several commands, and reading of the files named by flags."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from downloader.errors import ConfigError

if TYPE_CHECKING:
    from downloader.config import Settings

HOST_LIMIT = 4
"""Default limit of downloads from one host at once: quick, and few enough for any host."""

Config = Annotated[Path | None, Parameter(name=["--config", "-c"])]
Host = Annotated[str | None, Parameter(name="--host")]
Port = Annotated[int | None, Parameter(name="--port", validator=Number(gte=0, lte=65535))]
Json = Annotated[bool, Parameter(name="--json", show_default=False)]


def load(config: Path | None, flags: dict[str, Any] | None = None) -> Settings:
    """The settings from a file, the environment and flags (by dotted key, `None`: not given).

    Raises:
        ConfigError: a setting is invalid, or the file cannot be read.
    """
    from downloader.config import load_settings

    return load_settings(config, environ=os.environ, overrides=flags or {})


def read_lines(source: str) -> Iterator[tuple[str, str]]:
    """Yield the place (`FILE, line NUMBER`) and text of each line, except blank lines and comments.

    Args:
        source: a file's name, or `-` for standard input. UTF-8. A # at the start of a line begins
            a comment; elsewhere it is part of a URL.

    Raises:
        ConfigError: the file cannot be read.
    """
    name = "standard input" if source == "-" else source
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if source == "-" else Path(source).open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text and not text.startswith("#"):
                    yield f"{name}, line {number}", text
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: not a text file in UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise ConfigError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
