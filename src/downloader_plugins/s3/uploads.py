"""File objects for parts of files, and the uploads in progress."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from downloader.storage import StorageError
from downloader_plugins.objects import Call

_READ_BYTES = 256 * 1024
"""Bytes of the file read at once for the digest."""


class Slice:
    """A part of a file as a file object that botocore can read and seek.

    Reading raises `GivenUp` after a cancel.
    """

    def __init__(self, path: Path, offset: int, size: int, call: Call) -> None:
        self._file = path.open("rb", buffering=0)
        self._offset = offset
        self._size = size
        self._at = 0
        self._call = call

    def read(self, count: int | None = -1) -> bytes:
        """Read up to `count` bytes; fewer if the file was truncated."""
        self._call.check()
        remaining = self._size - self._at
        data = os.pread(
            self._file.fileno(),
            remaining if count is None or count < 0 else min(count, remaining),
            self._offset + self._at,
        )
        self._at += len(data)
        return data

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, counted from the start of the part."""
        self._at = to + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def md5(self) -> str:
        """The `Content-MD5` of the part; the position is then at the start.

        Raises:
            StorageError: the file ends before the part.
        """
        digest = content_md5(iter(partial(self.read, _READ_BYTES), b""))
        if self._at < self._size:
            raise StorageError("the file to be sent is shorter than it was")
        self.seek(0)
        return digest


def content_md5(pieces: Iterable[bytes]) -> str:
    """The value of `Content-MD5`, the checksum used by S3."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return base64.b64encode(digest.digest()).decode()


class Uploads:
    """The uploads in progress, shared by all `Bucket` objects of one bucket."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        """Ids of the uploads."""
        self._turns: dict[str, trio.Lock] = {}

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        """A lock for each key: until listed in `live`, an upload would be taken for a leftover."""
        lock = self._turns.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._turns.pop(key, None)
