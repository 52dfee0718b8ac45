"""Reading the settings for a command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from downloader.config import Settings, load_settings


def load(config: Path | None, flags: dict[str, Any] | None = None) -> Settings:
    """The settings from a file, the process's environment and flags, by dotted key, `None` where absent.

    Raises:
        ConfigError: anything about them is wrong.
    """
    return load_settings(config, environ=os.environ, overrides=flags or {})
