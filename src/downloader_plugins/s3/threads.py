"""Blocking calls in threads, the parts of files that they send, and the uploads in progress."""

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
"""Most requests in flight of one storage, or of all buckets of jobs together."""

_PATIENCE_S = 0.25
"""How long a cancelled call waits for its thread, which can stop between two blocks of a body. Then the
thread is abandoned until its socket times out, so that a peer that hangs does not delay a stop."""

T = TypeVar("T")


class GivenUp(Exception):
    """The call was cancelled; its thread has to end without publishing anything."""


class Call:
    """The state of a call, shared by its thread and the task that waits for it."""

    __slots__ = ("begun", "given_up")

    def __init__(self) -> None:
        self.begun = False
        self.given_up = False

    def check(self) -> None:
        """Call this in the thread before each step that a cancel should prevent.

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
        """Call `work` in a thread; returns its result or raises its exception.

        A cancel prevents work that has not begun. Work in progress sees the cancel in its `Call`, has
        `_PATIENCE_S` to end, and counts as one of the `THREADS` until it has ended.
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


class Uploads:
    """Shared by all `Bucket` objects that may upload to the same bucket."""

    def __init__(self) -> None:
        self.live: set[str] = set()
        """Their ids."""
        self._turns: dict[str, trio.Lock] = {}

    @asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        """A lock for each key: before it is in `live`, an upload would be taken for a leftover."""
        lock = self._turns.setdefault(key, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked() and not lock.statistics().tasks_waiting:
                self._turns.pop(key, None)
