"""The output folder of `downloader fetch`, and the names of files.

Each complete file is stored in a hidden folder in the output folder, so that giving the final name is one
atomic step. The hidden folder also has the record of complete files and the partial files, for later runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import mimetypes
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from downloader.errors import ConfigError, StorageError
from downloader.paths import private_folder, safe_name, split_name

if TYPE_CHECKING:
    from downloader.oneshot import FetchResult

HIDDEN = ".downloader"
"""Name of the hidden folder."""


@dataclass(frozen=True, slots=True)
class OutputFolder:
    """The folders of one run."""

    folder: Path
    last_numbers: dict[str, int] = field(default_factory=dict)
    """The last number given to each name, so that many files of one name do not try all numbers again."""

    @property
    def hidden(self) -> Path:
        """The hidden folder, on the file system of `folder`."""
        return self.folder / HIDDEN

    @property
    def spool_dir(self) -> Path:
        """Folder of downloads in progress and of partial files."""
        return self.hidden / "spool"

    @property
    def storage_dir(self) -> Path:
        """Folder of complete files without a final name."""
        return self.hidden / "files"

    @property
    def record(self) -> Path:
        """The record of complete files, common to all runs."""
        return self.hidden / "complete.jsonl"

    def partial_sizes(self) -> list[int]:
        """The sizes of the partial files."""
        files = [note.with_suffix("") for note in self.spool_dir.glob("*.json")]
        return [file.stat().st_size for file in files if file.exists()]

    def place(self, stored: Path, *, url: str, suggested: str = "", mime_type: str = "") -> Path:
        """Move a complete file to the final name, see `file_name`; to `name (2).ext` if the name is taken.

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
        raise AssertionError("unreachable: itertools.count never ends")


@contextlib.contextmanager
def open_output(folder: Path) -> Iterator[OutputFolder]:
    """Open the output folder, created if missing. At the end, files without a final name are deleted.

    Raises:
        ConfigError: not a folder, not writable, the hidden folder belongs to another user, or another run
            is using it.
    """
    output = OutputFolder(folder)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            private_folder(output.hidden, setting="the output folder")
            descriptor = os.open(output.hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another run is fetching into the folder {str(folder)!r}") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"the folder {str(folder)!r} cannot be written: {reason}") from None
        try:
            _delete_unnamed(output)  # of a run that was killed
            yield output
        finally:
            _delete_unnamed(output)
            for empty in (output.spool_dir, output.hidden):
                with contextlib.suppress(OSError):
                    empty.rmdir()


def _delete_unnamed(output: OutputFolder) -> None:
    """Delete complete files without a name."""
    if output.storage_dir.is_symlink():
        output.storage_dir.unlink()
    shutil.rmtree(output.storage_dir, ignore_errors=True)


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
        status = target.lstat()
        if not stat.S_ISREG(status.st_mode) or stored.stat().st_size != status.st_size:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Complete:
    """A complete file."""

    url: str
    name: str
    """Name in the output folder."""
    size: int
    sha256: str
    mime_type: str
    mtime_ns: int
    """The file's time of last change when it was recorded, in nanoseconds."""


_TYPES: dict[str, type] = {"size": int, "mtime_ns": int}
_FIELDS = {field.name: _TYPES.get(field.name, str) for field in fields(Complete)}
"""The type of each field."""


def _complete(line: bytes) -> Complete | None:
    """Parse a line; `None` if the line is incomplete or invalid."""
    try:
        values: dict[str, Any] = json.loads(line)
        name = values["name"]
        if name != Path(name).name or name in ("", "..") or b"\0" in os.fsencode(name):
            return None
        row = {field: values[field] for field in _FIELDS}
        return Complete(**row) if all(type(row[field]) is kind for field, kind in _FIELDS.items()) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


class Record:
    """The record of the complete files of an output folder, by URL. The caller calls `close`.

    There is a line of JSON for each file, appended after the file got its name. A line that was cut off by a
    crash is ignored; the file is then fetched again, and recognised as equal.
    """

    def __init__(self, output: OutputFolder) -> None:
        self._folder = output.folder
        self._path = output.record
        self._offsets: dict[int, int] = {}
        """Offset of the last line of a URL, by the hash of the URL; the lines would take much more memory."""
        self._appended = -1
        """Descriptor for appending lines; -1 until the first."""
        try:
            with contextlib.suppress(FileNotFoundError), open(self._path, "rb", opener=_open) as lines:
                offset = 0
                for line in lines:
                    if (file := _complete(line)) is not None:
                        self._offsets[hash(file.url)] = offset
                    offset += len(line)
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        if self._appended >= 0:
            os.close(self._appended)

    def intact(self, url: str) -> Complete | None:
        """The file of a URL, if it is unchanged. Its bytes are compared only if its time differs."""
        offset = self._offsets.get(hash(url))
        if offset is None:
            return None
        try:
            with open(self._path, "rb", opener=_open) as lines:
                lines.seek(offset)
                file = _complete(lines.readline())
            if file is None or file.url != url:
                return None
            path = self._folder / file.name
            status = path.lstat()
            unchanged = (
                stat.S_ISREG(status.st_mode)
                and status.st_size == file.size
                and (status.st_mtime_ns == file.mtime_ns or file_sha256(path) == file.sha256)
            )
        except OSError:
            return None
        return file if unchanged else None

    def add(self, result: FetchResult) -> None:
        """Record a complete file.

        Raises:
            OSError: the record cannot be written.
        """
        path = Path(result.path)
        row = {
            "url": result.url,
            "name": path.name,
            "size": result.size,
            "sha256": result.sha256,
            "mime_type": result.mime_type,
            "mtime_ns": path.stat().st_mtime_ns,
        }
        if self._appended < 0:
            self._appended = _open(str(self._path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        # The line break in front ends an incomplete line.
        os.write(self._appended, f"\n{json.dumps(row)}\n".encode())


def _open(path: str, flags: int) -> int:
    """Open a file, but no symbolic link, and without waiting for a pipe: others may have made the folder."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
