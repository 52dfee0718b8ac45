"""Where the files of `downloader fetch` go, and how they are named.

The engine stores each complete file in a hidden folder in the output folder. Giving it its final name is then
one step. The hidden folder also has what a later run needs: the record of complete files, and the parts of
unfinished ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import mimetypes
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from downloader.errors import ConfigError, StorageError
from downloader.filenames import safe_name, split_name
from downloader.folders import private_folder

HIDDEN = ".downloader"
"""The hidden folder's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """Where the files of one run go."""

    folder: Path
    hidden: Path
    """On the same file system as `folder`; this run's alone."""
    resumable: bool = True
    """Whether the parts of unfinished files stay for a later run. They do not if another run, which keeps its
    own, is using the folder at the same time."""
    taken: dict[str, int] = field(default_factory=dict)
    """By name, the last number given, so that with many files of one name not all numbers are tried again."""

    @property
    def spool_dir(self) -> Path:
        """For downloads in progress."""
        return self.hidden / "spool"

    @property
    def storage_dir(self) -> Path:
        """For complete files until they get their names."""
        return self.hidden / "files"

    @property
    def record(self) -> Path:
        """The record of the complete files; common to all runs."""
        return self.folder / HIDDEN / "complete.jsonl"

    def parts(self) -> list[int]:
        """The sizes of the parts that stay."""
        notes = self.spool_dir.glob("*.json") if self.resumable else ()
        parts = [note.with_suffix("") for note in notes]
        return [part.stat().st_size for part in parts if part.exists()]

    def place(self, stored: Path, *, url: str, suggested: str = "", mime_type: str = "") -> Path:
        """Give a complete file its name, see `file_name`; `name (2).ext` if that one is taken.

        An existing file is never overwritten, also if another process creates it at the same time. If it has
        the same content it is taken as the file.

        Raises:
            StorageError: it cannot be placed.
        """
        name = file_name(url, suggested=suggested, mime_type=mime_type)
        try:
            for number in itertools.count(self.taken.get(name, 0) + 1):
                target = self.folder / (name if number == 1 else _numbered(name, number))
                try:
                    _move_without_overwriting(stored, target)
                except FileExistsError:
                    if not _is_same(stored, target):
                        continue
                    stored.unlink()
                self.taken[name] = number
                return target
        except OSError as error:
            raise StorageError(f"{name} cannot be placed in {self.folder}: {error.strerror}") from error
        raise AssertionError("itertools.count ends")


@contextlib.contextmanager
def open_output(folder: Path) -> Iterator[OutputFolder]:
    """The output folder, created if missing. Only complete files, parts and the record are left in the end.

    Raises:
        ConfigError: it is no folder, no file can be made in it, or its hidden folder is another user's.
    """
    hidden = folder / HIDDEN
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            private_folder(hidden, setting="the output folder")
            resumable = _lock(hidden, stack)
            if not resumable:
                hidden = _run_folder(hidden, stack)
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"the folder {str(folder)!r} cannot be written: {reason}") from None
        output = OutputFolder(folder=folder, hidden=hidden, resumable=resumable)
        try:
            if resumable:
                _clean(output)
            yield output
        finally:
            _clean(output)
            for empty in (output.spool_dir, output.hidden):
                with contextlib.suppress(OSError):
                    empty.rmdir()


def _run_folder(hidden: Path, stack: contextlib.ExitStack) -> Path:
    """A new folder for a run that is not the only one, locked until the stack is closed."""
    while True:
        # Another run that ends deletes the folders that are not locked, perhaps this one before it is.
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=hidden))
        with contextlib.suppress(FileNotFoundError):
            if _lock(folder, stack) and folder.exists():
                return folder


def _lock(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Lock a folder until the stack is closed; false if another process has locked it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clean(output: OutputFolder) -> None:
    """Delete what no later run needs, also of runs that were killed."""
    if not output.resumable:
        shutil.rmtree(output.hidden, ignore_errors=True)
        return
    if output.storage_dir.is_symlink():
        output.storage_dir.unlink()
    shutil.rmtree(output.storage_dir, ignore_errors=True)
    for run in output.hidden.glob("run-*"):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if _lock(run, stack):
                shutil.rmtree(run)


def file_name(url: str, *, suggested: str = "", mime_type: str = "") -> str:
    """A file's name: what its origin `suggested`, or the last segment of the URL's path, made safe.

    Without either it is `index` with the extension of the type.
    """
    from downloader.net import Url

    path = Url.parse(url).target.partition(b"?")[0]
    segment = unquote(path.rpartition(b"/")[2], errors="replace")
    # Made safe again: it may come from the note of a part, in a folder that came from somebody else.
    return safe_name(suggested) or safe_name(segment) or f"index{mimetypes.guess_extension(mime_type) or ''}"


def _move_without_overwriting(source: Path, target: Path) -> None:
    """Raises `FileExistsError` if there is something called `target`."""
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: reserve the name, then rename over our own empty file
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            source.replace(target)
        except OSError:
            target.unlink(missing_ok=True)
            raise
    else:
        source.unlink(missing_ok=True)


def _is_same(stored: Path, target: Path) -> bool:
    try:
        found = target.lstat()
        if not stat.S_ISREG(found.st_mode) or stored.stat().st_size != found.st_size:
            return False
        return file_sha256(stored) == file_sha256(target)
    except OSError:
        return False


def file_sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _numbered(name: str, number: int) -> str:
    stem, extension = split_name(name)
    return f"{stem} ({number}){extension}"
