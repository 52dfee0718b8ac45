"""What this process asks of the disk, so that a test can tell what would survive a power failure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


def disk_calls(patch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """The calls from now on, in order: fsyncs of files and folders, renames by the source's folder."""
    seen: list[tuple[str, Path]] = []
    fsync, rename = os.fsync, os.rename

    def path_of(descriptor: int) -> Path:
        return Path(f"/proc/self/fd/{descriptor}").readlink()

    def synced(descriptor: int) -> None:
        seen.append(("fsync", path_of(descriptor)))
        fsync(descriptor)

    def renamed(source: Any, target: Any, *, src_dir_fd: int | None, dst_dir_fd: int) -> None:
        place = path_of(src_dir_fd) if src_dir_fd is not None else Path(source).parent
        seen.append(("rename", place))
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    patch.setattr(os, "fsync", synced)
    patch.setattr(os, "rename", renamed)
    return seen
