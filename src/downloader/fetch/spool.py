"""Spool files for incomplete bodies, in one folder per running instance.

The folder is locked (flock) while the instance runs. An instance that starts recognises the folders of
crashed instances by the missing lock, and deletes them. Files are created relative to the folder's
descriptor, under random names, with `O_EXCL` and `O_NOFOLLOW`, so that planted links and files have no
effect.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from downloader.errors import ConfigError
from downloader.paths import private_folder

_FOLDER = re.compile(r"spool-[0-9a-f]{16}")
"""Names of spool folders; folders with other names are never deleted."""

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_THREADS = 16
"""More writers at once are not faster."""

_CLEANUP_S = 2.0
"""Time limit of deleting the folder at the end; the next start deletes a remaining one."""


class Spool:
    """An open spool folder. All methods block: call them from threads."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.threads = trio.CapacityLimiter(_THREADS)
        """Limiter of the threads that use the spool, so that a hung disk does not use up all threads."""
        self._descriptor = descriptor

    def create(self, name: str = "") -> tuple[str, int]:
        """Create an empty file; return the name and a writable descriptor, which the caller closes.

        An empty `name` means a random name.

        Raises:
            OSError: the disk failed, or the name exists already.
        """
        name = name or secrets.token_hex(8)
        return name, os.open(name, _CREATE, 0o600, dir_fd=self._descriptor)

    def reopen(self, name: str) -> int:
        """Open a file to read and then to append; the caller closes the descriptor.

        Raises:
            OSError: the file does not exist, or the disk failed.
        """
        return os.open(name, _REOPEN, dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        """Delete a file, if still in the spool.

        Raises:
            OSError: the disk failed.
        """
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def close(self) -> None:
        """Delete the folder with all files, and unlock. Never raises."""
        _remove_folder(self.path, self._descriptor)
        os.close(self._descriptor)


@asynccontextmanager
async def open_spool(root: Path) -> AsyncIterator[Spool]:
    """Create a spool folder under `root`, after deleting the folders of crashed instances.

    Raises:
        ConfigError: `root` cannot be created or written.
    """
    try:
        await trio.to_thread.run_sync(_prepare, root)
        spool = await trio.to_thread.run_sync(_create_folder, root)
    except OSError as exc:
        raise ConfigError(f"cannot write the spool {root}: {exc.strerror or exc}") from exc
    try:
        yield spool
    finally:
        with trio.move_on_after(_CLEANUP_S, shield=True):
            await trio.to_thread.run_sync(spool.close, abandon_on_cancel=True)


@asynccontextmanager
async def open_kept_spool(path: Path) -> AsyncIterator[Spool]:
    """Use the folder `path`, created if missing; the files stay. Only the caller may use the folder.

    Raises:
        ConfigError: the folder cannot be created or written.
    """
    await trio.to_thread.run_sync(partial(private_folder, path, setting="the spool"))
    descriptor = os.open(path, _OPEN_FOLDER)
    try:
        yield Spool(path, descriptor)
    finally:
        os.close(descriptor)


def disk_used_percent(path: Path) -> float:
    """How full the disk under `path` is, 0 to 100, as `df` counts: blocks reserved for root are left out.

    Raises:
        OSError: the path does not exist.
    """
    disk = os.statvfs(path)
    used = disk.f_blocks - disk.f_bfree
    total = used + disk.f_bavail
    return 100.0 * used / total if total else 0.0


def _prepare(root: Path) -> None:
    private_folder(root, setting="the spool")
    with os.scandir(root) as entries:
        names = [e.name for e in entries if _FOLDER.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    for name in names:
        # Another instance may delete the folder first, or the folder may belong to another user.
        with suppress(OSError):
            _sweep_folder(root / name)


def _sweep_folder(path: Path) -> None:
    descriptor = os.open(path, _OPEN_FOLDER)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove_folder(path, descriptor)
    finally:
        os.close(descriptor)


def _create_folder(root: Path) -> Spool:
    while True:
        path = root / f"spool-{secrets.token_hex(8)}"
        path.mkdir(mode=0o700)
        with ExitStack() as stack, suppress(BlockingIOError, FileNotFoundError):
            # Until the folder is locked, another instance may take it for that of a crashed one and delete
            # it: then try again with a new folder.
            descriptor = os.open(path, _OPEN_FOLDER)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                stack.pop_all()
                return Spool(path, descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    return os.path.samestat(path.lstat(), os.fstat(descriptor))


def _remove_folder(path: Path, descriptor: int) -> None:
    """Delete a folder and all files in the folder, as far as the disk permits."""
    with suppress(OSError):
        for name in os.listdir(descriptor):
            with suppress(OSError):
                os.unlink(name, dir_fd=descriptor)
        if _is_at(path, descriptor):
            path.rmdir()
