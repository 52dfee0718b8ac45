"""Folders that other users of the machine cannot look into, and cannot have made in our place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from downloader.errors import ConfigError

MODE = 0o700


def private_folder(path: Path, *, setting: str) -> None:
    """Make a folder, with its parents, for this user alone; one that is there gets the same mode.

    What the whole machine shares keeps its mode: folders directly under the root, and those with the sticky
    bit. So does a folder of the superuser, who needs no permission.

    Args:
        path: the folder; a link to one is refused, for whoever owns the link decides where it leads.
        setting: stands at the beginning of the message.

    Raises:
        ConfigError: it cannot be made, or is a link, or another user's.
    """
    try:
        path.mkdir(mode=MODE, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if path.is_symlink():
            raise ConfigError(f"{setting}: {path} is a link; name the folder that it leads to") from None
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
