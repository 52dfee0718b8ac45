"""The output folder of `downloader fetch`, and the names of files.

Each complete file is stored in a hidden folder in the output folder, so that giving the final name is one
atomic step. The hidden folder also has the record of complete files and the partial files, for later runs.
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
"""Name of the hidden folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """The folders of one run."""

    folder: Path
    hidden: Path
    """A folder of this run alone, on the same file system as `folder`."""
    resumable: bool = True
    """Whether partial files stay for a later run; false if another run is using the folder at the same
    time."""
    last_numbers: dict[str, int] = field(default_factory=dict)
    """The last number given to each name, so that many files of one name do not try all numbers again."""

    @property
    def spool_dir(self) -> Path:
        """Folder of downloads in progress."""
        return self.hidden / "spool"

    @property
    def storage_dir(self) -> Path:
        """Folder of complete files without a final name."""
        return self.hidden / "files"

    @property
    def record(self) -> Path:
        """The record of complete files, common to all runs."""
        return self.folder / HIDDEN / "complete.jsonl"

    def partial_sizes(self) -> list[int]:
        """The sizes of the partial files."""
        notes = self.spool_dir.glob("*.json") if self.resumable else ()
        files = [note.with_suffix("") for note in notes]
        return [file.stat().st_size for file in files if file.exists()]

    def place(self, stored: Path, *, url: str, suggested: str = "", mime_type: str = "") -> Path:
        """Move a complete file to its name, see `file_name`; to `name (2).ext` if the name is taken.

        An existing file is never overwritten, even if another process creates it at the same time. If the
        existing file has the same content, the new one is deleted.

        Raises:
            StorageError: the file cannot be moved.
        """
        name = file_name(url, suggested=suggested, mime_type=mime_type)
        try:
            for number in itertools.count(self.last_numbers.get(name, 0) + 1):
                target = self.folder / (name if number == 1 else _numbered(name, number))
                try:
                    _move_without_overwriting(stored, target)
                except FileExistsError:
                    if not _is_same(stored, target):
                        continue
                    stored.unlink()
                self.last_numbers[name] = number
                return target
        except OSError as error:
            raise StorageError(f"{name} cannot be placed in {self.folder}: {error.strerror}") from error
        raise AssertionError("itertools.count ends")


@contextlib.contextmanager
def open_output(folder: Path) -> Iterator[OutputFolder]:
    """Open the output folder, created if missing. At the end all temporary files are deleted.

    Raises:
        ConfigError: not a folder, not writable, or the hidden folder belongs to another user.
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
    """Create a folder for a run beside another one, locked until the stack is closed."""
    while True:
        # Another run, at its end, deletes folders that are not locked, perhaps this one before the lock.
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=hidden))
        with contextlib.suppress(FileNotFoundError):
            if _lock(folder, stack) and folder.exists():
                return folder


def _lock(folder: Path, stack: contextlib.ExitStack) -> bool:
    """Lock a folder until the stack is closed; false if locked by another process."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _clean(output: OutputFolder) -> None:
    """Delete temporary files, also those of killed runs."""
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
    """The safe name of a file: `suggested` by the origin, or the last segment of the URL's path.

    Without either, the name is `index` with the extension of the type.
    """
    from downloader.net import Url

    path = Url.parse(url).target.partition(b"?")[0]
    segment = unquote(path.rpartition(b"/")[2], errors="replace")
    # Check `suggested` again: it may come from the note of a partial file made by another user.
    return safe_name(suggested) or safe_name(segment) or f"index{mimetypes.guess_extension(mime_type) or ''}"


def _move_without_overwriting(source: Path, target: Path) -> None:
    """Move a file; raise `FileExistsError` if `target` exists."""
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
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _numbered(name: str, number: int) -> str:
    stem, extension = split_name(name)
    return f"{stem} ({number}){extension}"
