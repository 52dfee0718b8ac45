"""Flags that several commands have, and reading the configuration that they name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

if TYPE_CHECKING:
    from downloader.config import Settings

HOST_LIMIT = 4
"""Downloads of one host at once by default: quick, and few enough for any host."""

Config = Annotated[Path | None, Parameter(name=["--config", "-c"])]
Host = Annotated[str | None, Parameter(name="--host")]
Port = Annotated[int | None, Parameter(name="--port", validator=Number(gte=0, lte=65535))]
Json = Annotated[bool, Parameter(name="--json", show_default=False)]


def load(config: Path | None, flags: dict[str, Any] | None = None) -> Settings:
    """The settings from a file, the process's environment and flags, by dotted key, `None` where absent.

    Raises:
        ConfigError: anything about them is wrong.
    """
    from downloader.config import load_settings

    return load_settings(config, environ=os.environ, overrides=flags or {})
