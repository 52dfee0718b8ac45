"""The record of the files that `downloader fetch` has completed in a folder, for later runs.

It has a line of JSON for each file, appended when the file has its name. A line that was cut off by a crash
is ignored; the file is then fetched again, and found to be the same.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
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


def _complete(line: dict[str, Any]) -> Complete:
    """Raises `KeyError`, `TypeError` or `ValueError` for what is no line of a record."""
    name = line["name"]
    if name != Path(name).name or name in ("", "..") or b"\0" in os.fsencode(name):
        raise ValueError(name)
    return Complete(**{field: line[field] for field in _FIELDS})


class Record:
    """The complete files of an output folder, by URL."""

    def __init__(self, output: OutputFolder) -> None:
        self._output = output
        self._files: dict[str, Complete] = {}
        for line in self._read().splitlines():
            with suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
                known = _complete(json.loads(line))
                self._files[known.url] = known

    def intact(self, url: str) -> Complete | None:
        """The file of a URL, if it is there as it was recorded. It is read only if its time differs."""
        known = self._files.get(url)
        if known is None:
            return None
        path = self.path(known)
        try:
            found = path.lstat()
            same = (
                stat.S_ISREG(found.st_mode)
                and found.st_size == known.size
                and (found.st_mtime_ns == known.mtime_ns or file_sha256(path) == known.sha256)
            )
        except OSError:
            return None
        return known if same else None

    def path(self, known: Complete) -> Path:
        """Where a file is."""
        return self._output.folder / known.name

    def add(self, result: FetchResult) -> None:
        """Record a file that has its name.

        Raises:
            OSError: the record cannot be written.
        """
        path = Path(result.path)
        known = Complete(
            url=result.url,
            name=path.name,
            size=result.size,
            sha256=result.sha256,
            mime_type=result.mime_type,
            mtime_ns=path.stat().st_mtime_ns,
        )
        # The line break before it ends a line that was cut off.
        line = f"\n{json.dumps(asdict(known))}\n".encode()
        with open(self._output.record, "ab", buffering=0, opener=_open) as record:
            record.write(line)

    def _read(self) -> bytes:
        try:
            with open(self._output.record, "rb", opener=_open) as record:
                return record.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise ConfigError(f"{self._output.record} cannot be read: {error.strerror}") from None


def _open(path: str, flags: int) -> int:
    """Follows no symbolic link and waits for no pipe: the folder may come from somebody else."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
