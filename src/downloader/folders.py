"""Folders that other users of the machine can neither read nor have created."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from downloader.errors import ConfigError

MODE = 0o700


def private_folder(path: Path, *, setting: str) -> None:
    """Create a folder and its parents with `MODE`; an existing folder gets the same mode.

    Shared folders keep their mode: those directly under the root, and those with the sticky bit. So do
    folders of the superuser. A symbolic link is refused: its owner could make it point elsewhere.

    Raises:
        ConfigError: it cannot be created, is a symbolic link, or belongs to another user; the text begins
            with `setting`, the key of the configuration.
    """
    try:
        path.mkdir(mode=MODE, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise ConfigError(
                f"{setting}: {path} is a symbolic link; name the folder that it points to"
            ) from None
        raise ConfigError(f"{setting}: {path} cannot be used: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if found.st_uid not in (os.geteuid(), 0):
            raise ConfigError(f"{setting}: {path} is another user's ({found.st_uid}, we are {os.geteuid()})")
        shared = found.st_mode & stat.S_ISVTX or len(path.resolve().parts) <= 2  # noqa: PLR2004 - `/` and a name
        if found.st_uid == os.geteuid() and not shared:
            os.fchmod(descriptor, MODE)
    finally:
        os.close(descriptor)
