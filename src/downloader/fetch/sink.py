"""Storage of a body during the transfer: in memory if there is room, else in a spool file."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeGuard

import trio

from downloader.fetch.memory import BodyMemory
from downloader.fetch.spool import Spool
from downloader.signals import failpoint
from downloader.tasks import background

BUFFER_BYTES = 1024 * 1024
"""Largest body that stays in memory, if there is room, and is stored in one step. Of a larger body a thread
writes this many bytes in one call; writing 64 KiB per call takes three times as long (measured)."""

ALWAYS_BYTES = 64 * 1024
"""Bytes that each body may have in memory without room too: small files stay cheap, and no thread writes
less."""

LOOP_BYTES = 256 * 1024
"""Largest body that is hashed in the event loop, which takes 0.1 ms; a thread would cost more."""

_SCRAP_BYTES = 8 * 1024
"""Smaller chunks are joined, so that a buffer has a few hundred chunks at most."""

_JOINED_BYTES = 64 * 1024
"""Joined chunks are of about this size."""

_IOV_MAX = 256
"""Chunks of one `writev`; in practice every system permits at least 256 (POSIX requires 16)."""

_STEP_BUFFERS = 64
"""Buffers of a partial file read in one call of a thread."""

_CLEANUP_S = 2.0
"""Time limit of closing or deleting a spool file after a cancel; the next start deletes a remaining file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteBody:
    """A complete body, either as `data` or as the file `path`."""

    size: int
    sha256: str
    data: bytes | None = None
    path: Path | None = None


class Sink:
    """Receiver of one body of any length, with at most two buffers in memory.

    `head` has the first `head_bytes` bytes. The spool file is called `name`; empty: a random name.
    The bytes in memory count in `memory` for the aggregation, until `discard`. A body without room there is
    written in small parts as it arrives, with a thread call for each part. To avoid this, a body of known
    length may first wait for room; see `reserve`.
    """

    def __init__(
        self, spool: Spool, memory: BodyMemory, aggregation: str, *, head_bytes: int, name: str = ""
    ) -> None:
        self._spool = spool
        self._memory = memory
        self._aggregation = aggregation
        self._held = 0
        """Bytes that count in `memory`."""
        self._reserved = 0
        """Bytes that were counted before being received."""
        self._crowded = False
        """Whether some of the bytes in memory found no room."""
        self._given_name = name
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
        """Whether the buffer in memory has to be written."""
        return self._buffered > BUFFER_BYTES or (self._crowded and self._buffered >= ALWAYS_BYTES)

    @property
    def _flushed(self) -> bool:
        return self.size > self._buffered

    def hash_with(self, algorithm: str) -> None:
        """Compute a further digest, by hashlib's name. To be called before the first `add`."""
        self._hashes.setdefault(algorithm, hashlib.new(algorithm, usedforsecurity=False))

    def digest(self, algorithm: str) -> str:
        """A digest of the complete file, in hexadecimal."""
        return self._hashes[algorithm].hexdigest()

    def needs_room(self, size: int | None) -> TypeGuard[int]:
        """Whether to `reserve` room for a body of `size` bytes (`None`: unknown).

        False for a body that always stays in memory, and for a body that is always written to a file.
        """
        return size is not None and ALWAYS_BYTES < size <= BUFFER_BYTES and not self._name

    async def reserve(self, size: int, *, within_s: float) -> None:
        """Wait for room for a body of `size` bytes, for `within_s` at the most; before the first `add`."""
        if await self._memory.reserve(self._aggregation, size, within_s=within_s):
            self._held = self._reserved = size

    def add(self, chunk: bytes | bytearray) -> None:
        """Append bytes to the buffer in memory."""
        self._buffered += len(chunk)
        self.size += len(chunk)
        more = min(len(chunk), self.size - self._reserved)
        if more > 0:
            self._held += more
            if not self._memory.hold(self._aggregation, more):
                self._crowded = True
        if len(chunk) >= _SCRAP_BYTES:
            self._chunks.append(chunk)
            return
        # As objects of their own, chunks of one byte would take a hundred times the memory.
        last = self._chunks[-1] if self._chunks else None
        if isinstance(last, bytearray) and len(last) < _JOINED_BYTES:
            last += chunk
        else:
            self._chunks.append(bytearray(chunk))

    async def resume(self, name: str, size: int) -> None:
        """Begin with the first `size` bytes of an existing spool file, included in the digests.

        The sink owns the file from now on, also after an exception.

        Raises:
            OSError: the disk failed, or the file is shorter than `size` bytes.
        """
        self._name, self._written = name, size
        await trio.to_thread.run_sync(self._reopen, size, limiter=self._spool.threads)
        while self.size < size:
            # In steps, because a cancel waits for the end of a step.
            await trio.to_thread.run_sync(self._reread, size, limiter=self._spool.threads)

    async def detach(self) -> tuple[str, int]:
        """Close the spool file without deleting; return the name and the number of valid bytes.

        The name is empty if there is no spool file, or the disk hangs. Works also when cancelled; never
        raises.
        """
        name, written = "", 0
        if self._name and self._written:
            with trio.move_on_after(_CLEANUP_S, shield=True):
                await trio.to_thread.run_sync(self._close, abandon_on_cancel=True)
                name, written, self._name = self._name, self._written, ""
        return name, written

    @asynccontextmanager
    async def writing_behind(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Write to the spool file in a background task.

        Yields a coroutine function that waits until the previous buffer has been written, then hands over the
        buffer in memory. A buffer without room in memory has been written when the function returns.

        Raises:
            OSError: the disk refuses it.
        """
        sender, receiver = trio.open_memory_channel[list[bytes | bytearray]](0)

        async def write(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            with receiver:
                async for chunks in receiver:
                    if chunks:
                        await trio.to_thread.run_sync(self._write, chunks, limiter=self._spool.threads)
                        self._let_go(sum(map(len, chunks)))

        async def hand_over() -> None:
            crowded, self._crowded = self._crowded, False
            await sender.send(self._take())
            if crowded:
                await sender.send([])  # is received when the bytes before have been written

        async with background(write, stop=sender.close):
            yield hand_over

    async def complete(self) -> CompleteBody:
        """End the body: a spool file is written, synced and closed.

        Raises:
            OSError: the disk refuses it.
        """
        if not self._flushed and not self._name:
            data = b"".join(self._take())
            if len(data) <= LOOP_BYTES:
                self._hash(data)
            else:
                await trio.to_thread.run_sync(self._hash, data)
            return CompleteBody(size=self.size, sha256=self.digest("sha256"), data=data)
        await trio.to_thread.run_sync(self._finish, self._take(), limiter=self._spool.threads)
        self._let_go(self._held)
        return CompleteBody(size=self.size, sha256=self.digest("sha256"), path=self._spool.path / self._name)

    async def discard(self) -> None:
        """Delete the spool file, if still in the spool; also when cancelled. Never raises."""
        self._chunks = []
        self._let_go(self._held)
        if self._name:
            with trio.move_on_after(_CLEANUP_S, shield=True):
                await trio.to_thread.run_sync(self._remove, abandon_on_cancel=True)

    def _let_go(self, size: int) -> None:
        self._held -= size
        self._memory.let_go(self._aggregation, size)

    def _hash(self, data: bytes | bytearray) -> None:
        for digest in self._hashes.values():
            digest.update(data)

    def _take(self) -> list[bytes | bytearray]:
        if not self._flushed:
            self._head = self.head
        chunks, self._chunks, self._buffered = self._chunks, [], 0
        return chunks

    def _write(self, chunks: list[bytes | bytearray]) -> None:
        if self._descriptor < 0:
            self._name, self._descriptor = self._spool.create(self._given_name)
        for chunk in chunks:
            self._hash(chunk)
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
            self._hash(data)
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
        with suppress(OSError):  # the folder is swept when this instance ends, or when the next one starts
            self._spool.remove(self._name)
