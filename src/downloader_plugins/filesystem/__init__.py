"""Keeps files in a folder: atomic, durable, and never outside of it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import trio
from pydantic import AfterValidator, BaseModel, ConfigDict

from downloader.errors import PluginError
from downloader.storage import (
    Body,
    Storage,
    StorageError,
    StorageHost,
    StorageRefused,
    StoredFile,
    parse_section,
)
from downloader_plugins.filesystem import tree

_WRITERS = 1
"""Batches of small files written at once. With one, what arrives meanwhile makes the next batch large:
measured with 16 puts in flight, 0.19 ms of CPU a file, against 0.23 ms with four."""
_BATCH_FILES = 128
"""Small files to a batch, each an open descriptor. One thread hop a file takes 0.5 ms of CPU, a batch 0.2 ms;
measured under load in one process with one writer, batches of up to 128 stored 728 files/s, up to 32, 561."""
_BATCH_FOLDERS = 256
"""Folders to a batch, each an open descriptor too: beyond it a batch takes no more files. With the usual two
to a file it never gets there, but clients may ask for hundreds, and a process may have but 1,024."""
_OTHER_THREADS = 16
"""Threads for large files, deletions and look-ups; of our own, so as not to use up Trio's."""

T = TypeVar("T")


def _absolute(path: Path) -> Path:
    # What a relative path means must not change with the working directory.
    return path.expanduser().absolute()


class FilesystemSettings(BaseModel):
    """`[processor.filestorage]` with `type = "filesystem"`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    rootdir: Annotated[Path, AfterValidator(_absolute)]
    """The folder; created if it is not there."""
    fsync: bool = True
    """Whether a stored file survives a power failure. Switch off only for files that can be fetched again."""


@asynccontextmanager
async def open_filesystem(section: Mapping[str, Any], host: StorageHost) -> AsyncIterator[Storage]:  # noqa: ARG001  # nothing of it is needed
    """Open the storage; its files stay when it is closed.

    Raises:
        PluginError: the section is at fault, or the folder cannot be written.
    """
    settings = _parse(section)
    try:
        mode = await trio.to_thread.run_sync(tree.prepare, settings.rootdir)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        reason = getattr(exc, "strerror", None) or str(exc)
        raise PluginError(f"rootdir {settings.rootdir} cannot be written: {reason}") from exc
    yield _Filesystem(settings, mode=mode)


def _parse(section: Mapping[str, Any]) -> FilesystemSettings:
    if not section.get("rootdir"):
        raise PluginError("rootdir: the filesystem storage needs the path of a folder")
    return parse_section(FilesystemSettings, section)


@dataclass(slots=True)
class _Waiting:
    put: tree.Put
    taken: bool = False
    """A batch has it: from here on it is written whatever becomes of its task."""
    done: trio.Event = field(default_factory=trio.Event)


class _Filesystem:
    """`Storage` in a folder.

    Small files are written in batches (group commit). A put that finds a free writer goes at once; those
    that come while all writers are busy wait, and the next writer takes as many as a batch holds.
    """

    def __init__(self, settings: FilesystemSettings, *, mode: int) -> None:
        self._root = settings.rootdir
        self._fsync = settings.fsync
        self._mode = mode
        self._waiting: deque[_Waiting] = deque()
        self._writers = trio.Semaphore(_WRITERS)
        self._writer_threads = trio.CapacityLimiter(_WRITERS)
        self._other_threads = trio.CapacityLimiter(_OTHER_THREADS)

    async def put(self, key: str, body: Body) -> None:
        """Store a file; see `Storage.put`.

        A cancel is heeded until the file's writing begins, and then again when it has ended: nothing is
        written after this returns or raises.
        """
        parts = tree.split_key(key)
        if body.data is not None:
            await self._put_small(_Waiting(tree.Put(key=key, parts=parts, body=body, data=body.data)))
        elif body.path is not None:
            move = partial(tree.move, body=body, source=body.path, mode=self._mode, fsync=self._fsync)
            await self._in_thread(key, partial(move, self._root, key, parts))
        else:
            raise ValueError("a Body has either data or a path")

    async def delete(self, key: str) -> None:
        """Delete a file; see `Storage.delete`. Not fsynced: a power failure may bring it back."""
        await self._in_thread(key, partial(tree.delete, self._root, tree.split_key(key)))

    async def local(self, key: str) -> StoredFile | None:
        """Find a file; see `Storage.local`. `None` for a key that no file can have."""
        try:
            parts = tree.split_key(key)
        except StorageRefused:
            return None
        return await self._in_thread(key, partial(tree.find, self._root, parts))

    def url(self, key: str) -> str:  # noqa: ARG002  # the protocol's
        """See `Storage.url`: our API serves the files."""
        return ""

    async def _put_small(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        try:
            async with self._writers:
                while not waiting.taken:
                    await self._write_batch()
        finally:
            if not waiting.taken:
                self._waiting.remove(waiting)
            elif not waiting.done.is_set():
                with trio.CancelScope(shield=True):  # bounded by the disk: a thread is at it
                    await waiting.done.wait()
        if waiting.put.error is not None:
            raise waiting.put.error

    async def _write_batch(self) -> None:
        """Write the puts that have waited longest; needs a token of `_writers`."""
        batch: list[_Waiting] = []
        folders = 0
        while self._waiting and len(batch) < _BATCH_FILES and folders < _BATCH_FOLDERS:
            batch.append(self._waiting.popleft())
            folders += len(batch[-1].put.parts)
        puts = [waiting.put for waiting in batch]
        for waiting in batch:
            waiting.taken = True
        write = partial(tree.write_all, self._root, puts, fsync=self._fsync)
        try:
            with trio.CancelScope(shield=True):  # others' files are in it; bounded by the disk
                await trio.to_thread.run_sync(write, limiter=self._writer_threads)
        except BaseException as exc:
            for put in puts:
                put.error = put.error or StorageError(f"file {put.key!r} was not stored: {exc!r}")
            raise
        finally:
            for waiting in batch:
                waiting.done.set()

    async def _in_thread(self, key: str, call: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(call, limiter=self._other_threads)
        except OSError as exc:
            raise tree.storage_error(key, exc) from exc
