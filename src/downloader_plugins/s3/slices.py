"""Parts of files as botocore sends them, and the checksum that S3 gets with each."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from downloader.storage import StorageError
from downloader_plugins.s3.threads import Call

_READ_BYTES = 256 * 1024
"""Bytes of the file that are read at once for its digest."""


class Slice:
    """A part of a file as a file object that botocore can read and seek.

    Reading raises `GivenUp` once its call was cancelled.
    """

    def __init__(self, path: Path, offset: int, size: int, call: Call) -> None:
        self._file = path.open("rb", buffering=0)
        self._offset = offset
        self._size = size
        self._at = 0
        self._call = call

    def read(self, count: int | None = -1) -> bytes:
        """Up to `count` bytes; fewer than the part has if the file was cut."""
        self._call.check()
        left = self._size - self._at
        data = os.pread(
            self._file.fileno(),
            left if count is None or count < 0 else min(count, left),
            self._offset + self._at,
        )
        self._at += len(data)
        return data

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, which counts from the start of the part."""
        self._at = to + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        """The position."""
        return self._at

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def md5(self) -> str:
        """Its `Content-MD5`; seeks back to the start.

        Raises:
            StorageError: the file is shorter than the part's end.
        """
        digest = content_md5(iter(partial(self.read, _READ_BYTES), b""))
        if self._at < self._size:
            raise StorageError("the file to be sent is shorter than it was")
        self.seek(0)
        return digest


def content_md5(pieces: Iterable[bytes]) -> str:
    """The value of `Content-MD5` for these bytes, a checksum that S3 defines."""
    digest = hashlib.md5(usedforsecurity=False)
    for piece in pieces:
        digest.update(piece)
    return base64.b64encode(digest.digest()).decode()
