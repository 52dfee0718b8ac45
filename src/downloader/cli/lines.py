"""Lists of lines that commands read from a file or from standard input."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from downloader.errors import ConfigError


def read_lines(source: str) -> Iterator[tuple[str, str]]:
    """`FILE, line NUMBER` and text of each line but blank ones and comments, as they come.

    Args:
        source: a file's name, or `-` for standard input. UTF-8; a # begins a comment only at a line's begin,
            as it is part of a URL elsewhere.

    Raises:
        ConfigError: it cannot be read.
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
