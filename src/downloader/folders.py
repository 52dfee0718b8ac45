"""Folders that other users of the machine cannot read and did not create."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from downloader.errors import ConfigError

MODE = 0o700


def private_folder(path: Path, *, setting: str) -> None:
    """Create a folder and all missing parents with `MODE`; an existing folder gets the same mode.

    The mode of a shared folder is not changed. A folder is shared if it is directly under the root, has the
    sticky bit or belongs to the superuser. A symbolic link is refused, because its owner could change where
    it points.

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
        status = os.fstat(descriptor)
        if status.st_uid not in (os.geteuid(), 0):
            raise ConfigError(f"{setting}: {path} is another user's ({status.st_uid}, we are {os.geteuid()})")
        shared = status.st_mode & stat.S_ISVTX or path.resolve().parent == Path("/")
        if status.st_uid == os.geteuid() and not shared:
            os.fchmod(descriptor, MODE)
    finally:
        os.close(descriptor)
