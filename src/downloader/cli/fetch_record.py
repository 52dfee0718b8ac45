"""The record of the files that `downloader fetch` has completed in a folder, for later runs.

There is a line of JSON for each file, appended after the file got its name. A line that was cut off by a
crash is ignored; the file is then fetched again, and recognised as equal.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from downloader.cli.fetch_folder import OutputFolder, file_sha256
from downloader.errors import ConfigError
from downloader.oneshot import FetchResult


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
    """Time of the last change of the file when it was recorded."""


_FIELDS = [field.name for field in fields(Complete)]


def _complete(line: bytes) -> Complete | None:
    """Parse a line; `None` if the line is incomplete or invalid."""
    try:
        values: dict[str, Any] = json.loads(line)
        name = values["name"]
        if name != Path(name).name or name in ("", "..") or b"\0" in os.fsencode(name):
            return None
        return Complete(**{field: values[field] for field in _FIELDS})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


class Record:
    """The complete files of an output folder, by URL. The caller calls `close`."""

    def __init__(self, output: OutputFolder) -> None:
        self._folder = output.folder
        self._path = output.record
        self._offsets: dict[int, int] = {}
        """Offset of the last line of a URL, by the hash of the URL; the lines would take much more memory."""
        self._appended = -1
        """Descriptor for appending lines; -1 until the first."""
        try:
            with suppress(FileNotFoundError), open(self._path, "rb", opener=_open) as lines:
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
        """The file of a URL, if unchanged since recorded; read only if the time of change differs."""
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
