"""Blocking calls in threads, file objects for parts of files, and the uploads in progress."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from downloader.storage import StorageError

THREADS = 16
"""Most requests in flight for one storage, or for all buckets of jobs together."""

_PATIENCE_S = 0.25
"""How long a cancelled call waits for the thread, which can stop between two blocks of a body. After that the
thread is abandoned until a timeout of the socket, so that a hung peer does not delay a stop."""

T = TypeVar("T")


class GivenUp(Exception):
    """The call was cancelled; the thread has to end without publishing anything."""


class Call:
    """The state of a call, shared by the thread and the waiting task."""

    __slots__ = ("begun", "given_up")

    def __init__(self) -> None:
        self.begun = False
        self.given_up = False

    def check(self) -> None:
        """Raise if the call was cancelled; for the thread, before each step that a cancel should prevent.

        Raises:
            GivenUp: the call was cancelled.
        """
        if self.given_up:
            raise GivenUp


class Threads:
    """A limited number of threads."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(THREADS)

    async def run(self, work: Callable[[Call], T]) -> T:
        """Call `work` in a thread; return the result or raise the exception.

        A cancel prevents work that has not begun. Running work sees the cancel in the `Call`, has
        `_PATIENCE_S` to end, and counts as one of the `THREADS` until its end.
        """
        call, ended = Call(), trio.Event()
        results: list[T] = []
        error: Exception | None = None
        carrying = trio.CancelScope(shield=True)

        def in_thread() -> T:
            call.begun = True
            call.check()
            return work(call)

        async def carry() -> None:
            nonlocal error
            try:
                with carrying:
                    results.append(
                        await trio.to_thread.run_sync(
                            in_thread, abandon_on_cancel=True, limiter=self._limiter
                        )
                    )
            except Exception as exc:  # noqa: BLE001 - raised below, in the caller's task
                error = exc
            finally:
                ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carry)
            try:
                await ended.wait()
            except trio.Cancelled:
                call.given_up = True
                if call.begun:
                    carrying.deadline = trio.current_time() + _PATIENCE_S
                else:
                    carrying.cancel()
                raise
        if error is not None:
            raise error
        return results[0]


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
