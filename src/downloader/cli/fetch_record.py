"""The record of the files that `downloader fetch` has completed in a folder, for later runs.

It has a line of JSON for each file, appended when the file has its name. A line that was cut off by a crash
is ignored; the file is then fetched again, and found to be the same.
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
    """In the output folder."""
    size: int
    sha256: str
    mime_type: str
    mtime_ns: int
    """Time of the file's last change when it was recorded."""


_FIELDS = [field.name for field in fields(Complete)]


def _complete(line: bytes) -> Complete | None:
    """The file that a line describes; `None` if the line was cut off, or is not one of ours."""
    try:
        values: dict[str, Any] = json.loads(line)
        name = values["name"]
        if name != Path(name).name or name in ("", "..") or b"\0" in os.fsencode(name):
            return None
        return Complete(**{field: values[field] for field in _FIELDS})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


class Record:
    """The complete files of an output folder, by URL; to be closed."""

    def __init__(self, output: OutputFolder) -> None:
        self._folder = output.folder
        self._path = output.record
        self._offsets: dict[int, int] = {}
        """Where the last line of a URL begins, by the hash of the URL; lines would take much more memory."""
        self._appended = -1
        """Descriptor for new lines, once there is one."""
        try:
            with suppress(FileNotFoundError), open(self._path, "rb", opener=_open) as lines:
                offset = 0
                for line in lines:
                    if (known := _complete(line)) is not None:
                        self._offsets[hash(known.url)] = offset
                    offset += len(line)
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        if self._appended >= 0:
            os.close(self._appended)

    def intact(self, url: str) -> Complete | None:
        """The file of a URL, if it is there as it was recorded. It is read only if its time differs."""
        offset = self._offsets.get(hash(url))
        if offset is None:
            return None
        try:
            with open(self._path, "rb", opener=_open) as lines:
                lines.seek(offset)
                known = _complete(lines.readline())
            if known is None or known.url != url:
                return None
            path = self._folder / known.name
            status = path.lstat()
            same = (
                stat.S_ISREG(status.st_mode)
                and status.st_size == known.size
                and (status.st_mtime_ns == known.mtime_ns or file_sha256(path) == known.sha256)
            )
        except OSError:
            return None
        return known if same else None

    def add(self, result: FetchResult) -> None:
        """Record a file that has its name.

        Raises:
            OSError: the record cannot be written.
        """
        path = Path(result.path)
        known = {
            "url": result.url,
            "name": path.name,
            "size": result.size,
            "sha256": result.sha256,
            "mime_type": result.mime_type,
            "mtime_ns": path.stat().st_mtime_ns,
        }
        if self._appended < 0:
            self._appended = _open(str(self._path), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        # The line break before it ends a line that was cut off.
        os.write(self._appended, f"\n{json.dumps(known)}\n".encode())


def _open(path: str, flags: int) -> int:
    """Follows no symbolic link and waits for no pipe: the folder may come from somebody else."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
