"""Parts of files, and the uploads in progress."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from downloader.storage import StorageError
from downloader_plugins.objects import Call

if TYPE_CHECKING:  # imported late, with boto3
    from s3transfer.utils import ReadFileChunk

_READ_BYTES = 256 * 1024
"""Bytes of the file read at once for the digest."""


@contextmanager
def open_part(path: Path, offset: int, size: int, call: Call) -> Iterator[tuple[ReadFileChunk, str]]:
    """Open a part of a file for botocore; yields the part and the `Content-MD5` of the part.

    Reading raises `GivenUp` after a cancel.

    Raises:
        OSError: the file cannot be read.
        StorageError: the file ends before the part.
    """
    from s3transfer.utils import ReadFileChunk  # noqa: PLC0415 - a part of boto3, see the package's docstring

    with ReadFileChunk.from_filename(str(path), offset, size, callbacks=[lambda **_: call.check()]) as part:
        md5 = content_md5(iter(partial(part.read, _READ_BYTES), b""))
        if part.tell() < size:
            raise StorageError("the file to be sent is shorter than it was")
        part.seek(0)
        yield part, md5


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
