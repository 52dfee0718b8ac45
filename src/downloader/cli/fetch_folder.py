"""Where the files of `downloader fetch` go, and how they are named.

The engine stores each complete file in a hidden folder in the output folder. Giving it its final name is then
one step.
"""

from __future__ import annotations

import contextlib
import itertools
import mimetypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from downloader.errors import ConfigError, StorageError
from downloader.filenames import safe_name, split_name


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """Where the files of one run go."""

    folder: Path
    hidden: Path
    """On the same file system as `folder`; gone when the run is over."""
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

    def place(self, stored: Path, *, url: str, said: str = "", mime_type: str = "") -> Path:
        """Give a complete file its name, see `file_name`; `name (2).ext` if that one is taken.

        An existing file is never overwritten, also if another process creates it at the same time.

        Raises:
            StorageError: it cannot be placed.
        """
        name = file_name(url, said=said, mime_type=mime_type)
        try:
            for number in itertools.count(self.taken.get(name, 0) + 1):
                target = self.folder / (name if number == 1 else _numbered(name, number))
                with contextlib.suppress(FileExistsError):
                    _move_without_overwriting(stored, target)
                    self.taken[name] = number
                    return target
        except OSError as error:
            raise StorageError(f"{name} cannot be placed in {self.folder}: {error.strerror}") from error
        raise AssertionError("itertools.count ends")


@contextlib.contextmanager
def open_output(folder: Path) -> Iterator[OutputFolder]:
    """The output folder, created if missing. Unfinished files are deleted when the context ends.

    Raises:
        ConfigError: it is no folder, or no file can be made in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=".downloader-", dir=folder))
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"the folder {str(folder)!r} cannot be written: {reason}") from None
    try:
        yield OutputFolder(folder=folder, hidden=hidden)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def file_name(url: str, *, said: str = "", mime_type: str = "") -> str:
    """A file's name from its URL: the last segment of the path, decoded and made safe.

    Without one it is the name that the origin `said`, or `index` with the extension of the type.
    """
    from downloader.net import Url

    path = Url.parse(url).target.partition(b"?")[0]
    segment = unquote(path.rpartition(b"/")[2], errors="replace")
    return safe_name(segment) or said or f"index{mimetypes.guess_extension(mime_type) or ''}"


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


def _numbered(name: str, number: int) -> str:
    stem, extension = split_name(name)
    return f"{stem} ({number}){extension}"
