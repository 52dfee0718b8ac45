"""Files under a root folder; symbolic links below the root are never followed.

Blocking calls, for threads. Each folder is opened from its parent's descriptor with `O_NOFOLLOW`, so a
symbolic link in place of a folder is an error.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from downloader.paths import is_safe_path, split_path
from downloader.storage import Body, KeyTaken, StorageError, StorageRefused, StoredFile

TMP = ".tmp"
"""Folder under the root for incomplete files; in the same filesystem, so that a rename publishes a file."""

_UNFINISHED_MODE = 0o600
"""Mode of an unpublished file."""
_COPY_BUFFER_BYTES = 1 << 20
"""Buffer so large that the cost of system calls does not matter."""
_LEFTOVER_AGE_S = 6 * 3600.0
"""Age from which temporary files count as left by a crash; no instance writes a file for this long."""
_RACES = 50
"""Most attempts to rename into a folder during concurrent deletions of that folder."""

_OPEN_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OPEN_FOLDER = _OPEN_ROOT | os.O_NOFOLLOW
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Non-blocking, so that opening a FIFO at the path does not block the thread."""

Parts = tuple[str, ...]
"""A key, split at the slashes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """The root folder, and how files are stored in it."""

    path: Path
    mode: int
    """The mode of stored files; new folders get a mode that fits."""
    fsync: bool
    """Whether stored files survive a power failure."""


@dataclass(slots=True, kw_only=True)
class Put:
    """A small file to store; `write_all` sets the last three fields."""

    parts: Parts
    body: Body
    data: bytes
    tmp: str = ""
    """Name of the temporary file; empty without one."""
    fd: int = -1
    error: Exception | None = None
    """Why the file was not stored; `None` for a stored file."""


class Folders:
    """Descriptors of folders below a root, closed together at the end of the `with` block.

    New folders get a mode that fits the mode of files.
    """

    def __init__(self, root: Path, *, mode: int = 0) -> None:
        self._root = root
        self._mode = folder_mode(mode)
        self._open: dict[Parts, int] = {}
        self._stale: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (*self._open.values(), *self._stale):
            os.close(fd)

    def open(self, parts: Parts, *, create: bool) -> int:
        """Descriptor of a folder, valid until the `with` block ends.

        Raises:
            OSError: `ENOENT` if the folder is missing (with `create`: if removed meanwhile, or a parent was),
                `ENOTDIR` or `ELOOP` if the name is not that of a folder.
        """
        fd = self._open.get(parts, -1)
        if fd < 0:
            # From the root on, without recursion: a client's path may have thousands of parts.
            for length in range(len(parts) + 1):
                here, parent = parts[:length], fd
                fd = self._open.get(here, -1)
                if fd < 0:
                    if here:
                        fd = _open_child(here[-1], parent=parent, mode=self._mode if create else None)
                    else:
                        fd = os.open(self._root, _OPEN_ROOT)
                    self._open[here] = fd
        return fd

    def forget(self, parts: Parts) -> None:
        """Make `open` open the folder and all parents again, after a removal."""
        for length in range(1, len(parts) + 1):
            fd = self._open.pop(parts[:length], None)
            if fd is not None:
                self._stale.append(fd)  # for `sync`: it may have an earlier file of the batch

    def sync(self) -> None:
        """Fsync every opened folder, inner folders first."""
        for fd in self._stale:
            os.fsync(fd)
        for parts in sorted(self._open, key=len, reverse=True):
            if parts != (TMP,):
                os.fsync(self._open[parts])


def folder_mode(mode: int) -> int:
    """The mode of folders for files with the given mode: readers of files may enter the folders."""
    return 0o300 | mode | (mode & 0o444) >> 2


def _open_child(name: str, *, parent: int, mode: int | None) -> int:
    """Open a folder; with a mode, create a missing folder."""
    try:
        return os.open(name, _OPEN_FOLDER, dir_fd=parent)
    except FileNotFoundError:
        if mode is None:
            raise
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        return os.open(name, _OPEN_FOLDER, dir_fd=parent)
    fd = os.open(name, _OPEN_FOLDER, dir_fd=parent)
    try:
        # Independent of the umask; higher bits, such as setgid, are inherited from the parent.
        os.fchmod(fd, os.fstat(fd).st_mode & ~0o777 | mode)
    except OSError:
        os.close(fd)
        raise
    return fd


def split_key(key: str) -> Parts:
    """Split a key at the slashes.

    Raises:
        StorageRefused: the key is no safe path, or is inside `TMP`.
    """
    parts = split_path(key) if is_safe_path(key) else ()
    if not parts or parts[0] == TMP:
        raise StorageRefused(f"not a valid key: {key!r}")
    return parts


def storage_error(key: str, exc: OSError, *, chosen: bool = False) -> StorageError:
    """The `StorageError` for a failed system call; names the key, never the root.

    `chosen`: the client has chosen the key, so that a folder in place of a file, or a file in place of a
    folder, is the client's fault.
    """
    reason = os.strerror(exc.errno) if exc.errno else str(exc)
    if exc.errno in (errno.ENOTDIR, errno.ELOOP):
        reason = "a folder of its path is not a folder"
    refused = exc.errno == errno.ENAMETOOLONG or (chosen and exc.errno in (errno.ENOTDIR, errno.EISDIR))
    kind = StorageRefused if refused else StorageError
    return kind(f"file {key!r}: {reason}")


def prepare(root: Path, *, mode: int) -> None:
    """Create the root for files with the given mode, test the root by writing, delete old temporary files.

    Raises:
        OSError: the root cannot be created or written.
    """
    root.mkdir(folder_mode(mode), parents=True, exist_ok=True)
    with Folders(root, mode=_UNFINISHED_MODE) as folders:
        tmp = folders.open((TMP,), create=True)
        name = secrets.token_hex(8)
        os.close(os.open(name, _CREATE, _UNFINISHED_MODE, dir_fd=tmp))
        os.unlink(name, dir_fd=tmp)
        _sweep(tmp)


def _sweep(tmp: int) -> None:
    oldest = time.time() - _LEFTOVER_AGE_S
    for name in os.listdir(tmp):
        with suppress(OSError):  # gone, or no permission: the next start tries again
            status = os.stat(name, dir_fd=tmp, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode) and status.st_mtime < oldest:
                os.unlink(name, dir_fd=tmp)


def write_all(root: Root, puts: Sequence[Put]) -> None:
    """Store small files together; set `Put.error` after a failure.

    Each step is done for all files before the next one, so that the filesystem can commit them together. A
    file that fails does not affect the others. The folders are fsynced once, at the end.
    """
    with Folders(root.path, mode=root.mode) as folders:
        try:
            tmp = folders.open((TMP,), create=True)
        except OSError as exc:
            _fail(puts, exc)
            return
        steps: list[Callable[[Put], None]] = [
            lambda put: _write(put, tmp, mode=root.mode, begin=root.fsync and len(puts) > 1),
            lambda put: _close(put, fsync=root.fsync),
            lambda put: _publish(put, folders, tmp),
        ]
        try:
            for step in steps:
                for put in puts:
                    if put.error is None:
                        _try(step, put)
            if root.fsync:
                folders.sync()
        except OSError as exc:
            _fail(puts, exc)
        finally:
            for put in puts:
                _clean(put, tmp)


def _try(step: Callable[[Put], None], put: Put) -> None:
    try:
        step(put)
    except OSError as exc:
        put.error = storage_error("/".join(put.parts), exc, chosen=put.body.key_exists is not None)
    except Exception as exc:  # noqa: BLE001 - raised in the file's own task
        put.error = exc


def _fail(puts: Sequence[Put], exc: OSError) -> None:
    for put in puts:
        put.error = put.error or storage_error("/".join(put.parts), exc)


def _write(put: Put, tmp: int, *, mode: int, begin: bool) -> None:
    name = secrets.token_hex(8)
    put.fd = os.open(name, _CREATE, _UNFINISHED_MODE, dir_fd=tmp)
    put.tmp = name
    os.fchmod(put.fd, mode)  # independent of the umask
    written = os.write(put.fd, put.data)
    while written < len(put.data):
        written += os.write(put.fd, memoryview(put.data)[written:])
    if begin and hasattr(os, "posix_fadvise"):
        # Makes Linux begin to write back, and ext4 to allocate, at once, so that one journal commit serves
        # all fsyncs of the batch. Measured with batches of 16: a third of the time, half of the CPU.
        os.posix_fadvise(put.fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _close(put: Put, *, fsync: bool) -> None:
    if fsync:
        os.fsync(put.fd)
    fd, put.fd = put.fd, -1
    os.close(fd)


def _publish(put: Put, folders: Folders, tmp: int) -> None:
    _check_ours(put.parts, put.body)
    _publish_into(folders, put.parts, put.body, source=put.tmp, source_dir=tmp)
    put.tmp = ""


def _clean(put: Put, tmp: int) -> None:
    with suppress(OSError):
        if put.fd >= 0:
            os.close(put.fd)
    with suppress(OSError):  # a later start deletes it
        if put.tmp:
            os.unlink(put.tmp, dir_fd=tmp)


def _not_stored(parts: Parts, reason: str) -> StorageError:
    return StorageError(f"file {'/'.join(parts)!r} was not stored: {reason}")


def _check_ours(parts: Parts, body: Body) -> None:
    if not body.still_ours():
        raise _not_stored(parts, "another instance has taken the job")


def _replaces(body: Body) -> bool:
    return body.key_exists in (None, "replace")


def _publish_into(folders: Folders, parts: Parts, body: Body, *, source: str, source_dir: int) -> None:
    """Move a temporary file to the final path, unless the file there is to stay."""
    if _replaces(body):
        rename_into(folders, parts, source=source, source_dir=source_dir)
        return
    try:
        rename_into(folders, parts, source=source, source_dir=source_dir, replace=False)
    except FileExistsError:
        folder = folders.open(parts[:-1], create=False)
        if not _is_kept(parts[-1], folder, body):
            raise KeyTaken(f"file {'/'.join(parts)!r}: another file has this key") from None
    os.unlink(source, dir_fd=source_dir)


def _is_kept(name: str, folder: int, body: Body) -> bool:
    """Whether the existing file is accepted: `key_exists` is `keep`, or the file has the same bytes.

    Raises:
        OSError: the file cannot be read; `EISDIR` for a folder.
    """
    fd = os.open(name, _READ, dir_fd=folder)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if body.key_exists == "keep" or status.st_size != body.size:
            return body.key_exists == "keep"
        with os.fdopen(fd, "rb", closefd=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == body.sha256
    finally:
        os.close(fd)


def rename_into(
    folders: Folders,
    parts: Parts,
    *,
    source: str | Path,
    source_dir: int | None,
    replace: bool = True,
) -> None:
    """Rename a file to the final path; create folders, again after a concurrent deletion.

    Without `replace`, an existing file is a `FileExistsError`, and the source stays too.
    """
    rename: Callable[..., None] = os.rename if replace else partial(os.link, follow_symlinks=False)
    for tries_left in reversed(range(_RACES)):
        try:
            folder = folders.open(parts[:-1], create=True)
            rename(source, parts[-1], src_dir_fd=source_dir, dst_dir_fd=folder)
        except FileNotFoundError:
            folders.forget(parts[:-1])
            if not tries_left:
                raise
        else:
            return


def move(root: Root, parts: Parts, body: Body, source: Path) -> None:
    """Store the spool file `source` by a rename, or by a copy from another filesystem.

    Raises:
        StorageError, OSError: the file is not stored; the spool file may remain.
    """
    with Folders(root.path, mode=root.mode) as folders:
        fd = os.open(source, _READ)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size != body.size:
                raise _not_stored(parts, "its spool file has changed")
            same_device = status.st_dev == os.fstat(folders.open((), create=False)).st_dev
            # A spool file that had a second name could be written to by the job's next attempt.
            if same_device and _replaces(body):
                os.fchmod(fd, root.mode)
                _check_ours(parts, body)
                moved = _renamed(folders, parts, source)
            else:
                moved = False
            if not moved:
                _copy(fd, folders, root, parts, body)
        finally:
            os.close(fd)
        if root.fsync:
            folders.sync()


def _renamed(folders: Folders, parts: Parts, source: Path) -> bool:
    """Rename a spool file to the final path; false if the path is on another mount of the same device."""
    try:
        rename_into(folders, parts, source=source, source_dir=None)
    except OSError as exc:
        if exc.errno != errno.EXDEV:
            raise
        return False
    _check_no_link(folders, parts)
    return True


def _check_no_link(folders: Folders, parts: Parts) -> None:
    """Refuse a symbolic link that replaced the spool file between check and rename."""
    folder = folders.open(parts[:-1], create=False)
    with suppress(FileNotFoundError):  # deleted meanwhile
        if stat.S_ISLNK(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
            os.unlink(parts[-1], dir_fd=folder)
            raise _not_stored(parts, "a symbolic link replaced its spool file")


def _copy(source: int, folders: Folders, root: Root, parts: Parts, body: Body) -> None:
    tmp = folders.open((TMP,), create=True)
    name = secrets.token_hex(8)
    fd = os.open(name, _CREATE, _UNFINISHED_MODE, dir_fd=tmp)
    try:
        _copy_bytes(source, fd, root, parts, size=body.size)
        _check_ours(parts, body)
        _publish_into(folders, parts, body, source=name, source_dir=tmp)
    except BaseException:
        with suppress(OSError):  # a later start deletes it
            os.unlink(name, dir_fd=tmp)
        raise


def _copy_bytes(source: int, target: int, root: Root, parts: Parts, *, size: int) -> None:
    """Copy all bytes into `target`, set the mode, check the size, and sync the file if `root` says so.

    `target` is closed, also after an error; `source` stays open.

    Raises:
        StorageError: the spool file has another size.
        OSError: the disk failed.
    """
    with os.fdopen(target, "wb") as out, os.fdopen(os.dup(source), "rb", buffering=0) as file:
        os.fchmod(target, root.mode)
        shutil.copyfileobj(file, out, _COPY_BUFFER_BYTES)
        out.flush()
        if out.tell() != size:
            raise _not_stored(parts, "its spool file changed while it was copied")
        if root.fsync:
            os.fsync(target)


def delete(root: Path, parts: Parts) -> None:
    """Delete a file, and then all empty folders on the path.

    Raises:
        OSError: the file exists and cannot be deleted.
    """
    with Folders(root) as folders:
        try:
            os.unlink(parts[-1], dir_fd=folders.open(parts[:-1], create=False))
        except FileNotFoundError:
            return
        for length in range(len(parts) - 1, 0, -1):
            try:
                os.rmdir(parts[length - 1], dir_fd=folders.open(parts[: length - 1], create=False))
            except OSError:  # usually because it has files again; an empty folder does no harm
                return


def find(root: Path, parts: Parts, *, sync: bool = False) -> StoredFile | None:
    """Find the regular file with a key; follow no symbolic link.

    `sync`: fsync its folders, as whoever has renamed the file may not have done so yet.
    """
    with Folders(root) as folders:
        try:
            folder = folders.open(parts[:-1], create=False)
            status = os.stat(parts[-1], dir_fd=folder, follow_symlinks=False)
            if sync:
                folders.sync()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENAMETOOLONG):
                return None
            raise
    if not stat.S_ISREG(status.st_mode):
        return None
    return StoredFile(path=root.joinpath(*parts), size=status.st_size)
