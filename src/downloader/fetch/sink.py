"""Where a body is kept as it arrives: in memory while it is small, then in a spool file."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import trio

from downloader.failpoints import failpoint
from downloader.fetch.spool import Spool
from downloader.tasks import background

SMALL_BYTES = 64 * 1024
"""Up to here a body stays in memory and is stored in one step; most files of the web are smaller."""

BUFFER_BYTES = 1024 * 1024
"""Bytes that a thread writes in one call; calls of 64 KiB were measured to take three times as long."""

_SCRAP_BYTES = 8 * 1024
"""Chunks below this size are joined, so that a buffer has a few hundred chunks at most."""

_IOV_MAX = 256
"""Chunks for one write; every system takes at least this many in practice (POSIX wants 16)."""

_STEP_BUFFERS = 64
"""Buffers of a part that are read in one step."""

_CLEANUP_S = 2.0
"""Time limit of closing or deleting a spool file after a cancel; otherwise the next start deletes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteBody:
    """A complete body; exactly one of `data` and `path` is given."""

    size: int
    sha256: str
    data: bytes | None = None
    path: Path | None = None


class Sink:
    """Receives one body; at most two buffers of it are in memory, whatever its length.

    `head` keeps `head_bytes` of it. The spool file has this name, or without one a random name.
    """

    def __init__(self, spool: Spool, *, head_bytes: int, name: str = "") -> None:
        self._spool = spool
        self._wanted_name = name
        self._head_bytes = head_bytes
        self._head = b""
        self._chunks: list[bytes | bytearray] = []
        self._buffered = 0
        self._hashes = {"sha256": hashlib.sha256()}
        self._name = ""
        self._descriptor = -1
        self._written = 0
        self.size = 0

    @property
    def head(self) -> bytes:
        """The first bytes, up to `head_bytes`."""
        if self._flushed:
            return self._head
        return b"".join(self._chunks)[: self._head_bytes]

    @property
    def full(self) -> bool:
        """Whether it is time to hand over what is in memory."""
        return self._buffered >= BUFFER_BYTES

    @property
    def _flushed(self) -> bool:
        return self.size > self._buffered

    def hash_with(self, algorithm: str) -> None:
        """Compute one more digest, by hashlib's name; before the first `add`."""
        self._hashes.setdefault(algorithm, hashlib.new(algorithm))

    def digest(self, algorithm: str) -> str:
        """A digest of the complete file, in hexadecimal."""
        return self._hashes[algorithm].hexdigest()

    def add(self, chunk: bytes | bytearray) -> None:
        """Take the next bytes, in memory."""
        self._buffered += len(chunk)
        self.size += len(chunk)
        if len(chunk) >= _SCRAP_BYTES:
            self._chunks.append(chunk)
            return
        # A million chunks of one byte would take a hundred times their bytes.
        last = self._chunks[-1] if self._chunks else None
        if isinstance(last, bytearray) and len(last) < SMALL_BYTES:
            last += chunk
        else:
            self._chunks.append(bytearray(chunk))

    async def resume(self, name: str, size: int) -> None:
        """Begin with the first bytes of a spool file, and read them, so that the digests include them.

        The file is this sink's from now on, also after an exception.

        Raises:
            OSError: the disk refuses it, or the file is shorter than `size` bytes.
        """
        self._name, self._written = name, size
        await trio.to_thread.run_sync(self._reopen, size, limiter=self._spool.threads)
        while self.size < size:
            # In steps, because a cancel waits for the end of a step.
            await trio.to_thread.run_sync(self._reread, size, limiter=self._spool.threads)

    async def detach(self) -> tuple[str, int]:
        """Close the spool file and keep it; returns its name, and how many of its bytes are valid.

        The name is empty if there is no such file, or the disk hangs. Also when cancelled; never raises.
        """
        name, written = "", 0
        if self._name and self._written:
            with trio.move_on_after(_CLEANUP_S, shield=True):
                await trio.to_thread.run_sync(self._close, abandon_on_cancel=True)
                name, written, self._name = self._name, self._written, ""
        return name, written

    @asynccontextmanager
    async def writing_behind(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Write to the spool file while more arrives.

        Yields a coroutine function that hands over what is in memory, as soon as the buffer before has been
        written.

        Raises:
            OSError: the disk refuses it.
        """
        sender, receiver = trio.open_memory_channel[list[bytes | bytearray]](0)

        async def write(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            with receiver:
                async for chunks in receiver:
                    await trio.to_thread.run_sync(self._write, chunks, limiter=self._spool.threads)

        async def hand_over() -> None:
            await sender.send(self._take())

        async with background(write, stop=sender.close):
            yield hand_over

    async def complete(self) -> CompleteBody:
        """Call at the end of the body. A spool file is then synced and closed.

        Raises:
            OSError: the disk refuses it.
        """
        if self.size <= SMALL_BYTES:
            data = b"".join(self._chunks)
            for each in self._hashes.values():
                each.update(data)
            return CompleteBody(size=self.size, sha256=self.digest("sha256"), data=data)
        await trio.to_thread.run_sync(self._finish, self._take(), limiter=self._spool.threads)
        return CompleteBody(size=self.size, sha256=self.digest("sha256"), path=self._spool.path / self._name)

    async def discard(self) -> None:
        """Delete the spool file, unless it has been moved away; also when cancelled. Never raises."""
        self._chunks = []
        if self._name:
            with trio.move_on_after(_CLEANUP_S, shield=True):
                await trio.to_thread.run_sync(self._remove, abandon_on_cancel=True)

    def _take(self) -> list[bytes | bytearray]:
        if not self._flushed:
            self._head = self.head
        chunks, self._chunks, self._buffered = self._chunks, [], 0
        return chunks

    def _write(self, chunks: list[bytes | bytearray]) -> None:
        if self._descriptor < 0:
            self._name, self._descriptor = self._spool.create(self._wanted_name)
        for each in self._hashes.values():
            for chunk in chunks:
                each.update(chunk)
        views = deque(memoryview(chunk) for chunk in chunks)
        length = sum(map(len, views))
        while views:
            written = os.writev(self._descriptor, tuple(islice(views, _IOV_MAX)))
            while views and written >= len(views[0]):
                written -= len(views.popleft())
            if written:
                views[0] = views[0][written:]
        self._written += length

    def _reopen(self, size: int) -> None:
        self._descriptor = self._spool.reopen(self._name)
        if os.fstat(self._descriptor).st_size < size:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.ftruncate(self._descriptor, size)  # an incomplete write may have left more

    def _reread(self, size: int) -> None:
        for _ in range(_STEP_BUFFERS):
            if self.size == size:
                return
            data = os.read(self._descriptor, min(BUFFER_BYTES, size - self.size))
            if not data:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            if self.size < self._head_bytes:
                self._head = (self._head + data)[: self._head_bytes]
            for each in self._hashes.values():
                each.update(data)
            self.size += len(data)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _finish(self, chunks: list[bytes | bytearray]) -> None:
        self._write(chunks)
        failpoint("before-fsync")
        os.fsync(self._descriptor)
        self._close()

    def _remove(self) -> None:
        self._close()
        try:
            self._spool.remove(self._name)
        except OSError:
            # The folder is swept when this instance ends, or when the next one starts.
            return
