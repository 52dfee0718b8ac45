"""Storage in a folder, atomic and durable, without following symbolic links."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import trio
from pydantic import AfterValidator, BaseModel, BeforeValidator

from downloader.errors import PluginError
from downloader.storage import (
    Body,
    CommitAbandoned,
    GroupCommit,
    Storage,
    StorageError,
    StorageHost,
    StorageRefused,
    StoredFile,
    parse_section,
)
from downloader_plugins.filesystem import tree

_BATCH_FILES = 128
"""Most files in a batch; each is an open descriptor. Measured: 0.5 ms of CPU a file with a thread call each,
0.2 ms in batches; 728 files/s in batches of up to 128, 561 in batches of up to 32. Concurrent batches are
smaller and cost more: 0.23 ms of CPU a file with four, 0.19 ms with one."""
_BATCH_FOLDERS = 256
"""Most folders in a batch; each is an open descriptor, of which a process may have 1,024 only. A file usually
needs two folders, but clients may ask for hundreds."""
_FOLDER_BYTES = 32 * 1024
"""Bytes that count as one folder. So a batch has at most 8 MiB, and no file waits long for others."""
_OTHER_THREADS = 16
"""Threads for large files, deletions and look-ups, apart from Trio's default limit."""
_FINISH_S = 5.0
"""How long a cancelled put waits for the thread that writes the file."""

_MODE = re.compile(r"0?[67][0-7][0-7]")

T = TypeVar("T")


def _absolute(path: Path) -> Path:
    # A relative path must not change its meaning with the working directory.
    return path.expanduser().absolute()


def _mode(value: object) -> str:
    text = str(value)
    if not _MODE.fullmatch(text):
        raise ValueError('must be octal and in quotes, such as "0640"; the service has to read and write')
    return text


class FilesystemSettings(BaseModel, extra="forbid", frozen=True, hide_input_in_errors=True):
    """`[processor.filestorage]` with `type = "filesystem"`."""

    rootdir: Annotated[Path, AfterValidator(_absolute)]
    """The folder; created if missing."""
    mode: Annotated[str, BeforeValidator(_mode)] = "0640"
    """Permissions of stored files, octal, independent of the umask. New folders get matching permissions."""
    fsync: bool = True
    """Whether stored files survive a power failure. Switch off only if files can be downloaded again."""


@asynccontextmanager
async def open_filesystem(section: Mapping[str, Any], host: StorageHost) -> AsyncIterator[Storage]:
    """Open the storage; files stay after the close.

    Raises:
        PluginError: the section is invalid, or the folder cannot be written.
    """
    settings = _parse(section)
    mode = int(settings.mode, base=8)
    try:
        await trio.to_thread.run_sync(partial(tree.prepare, settings.rootdir, mode=mode))
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        reason = getattr(exc, "strerror", None) or str(exc)
        raise PluginError(f"rootdir {settings.rootdir} cannot be written: {reason}") from exc
    storage = _Filesystem(settings, host, mode=mode)
    async with storage.small.running():
        yield storage


def _parse(section: Mapping[str, Any]) -> FilesystemSettings:
    if not section.get("rootdir"):
        raise PluginError("rootdir: the filesystem storage needs the path of a folder")
    return parse_section(FilesystemSettings, section)


class _Filesystem:
    """`Storage` in a folder; small files are written in batches."""

    knows_key_exists = True
    """See `Storage.put`."""

    def __init__(self, settings: FilesystemSettings, host: StorageHost, *, mode: int) -> None:
        self._root = tree.Root(path=settings.rootdir, mode=mode, fsync=settings.fsync)
        self.small: GroupCommit[tree.Put, Exception | None] = host.group_commit(
            self._write,
            max_batch=_BATCH_FILES,
            weight=lambda put: len(put.parts) + len(put.data) // _FOLDER_BYTES,
            max_weight=_BATCH_FOLDERS,
            finish_s=_FINISH_S,
        )
        self._writer = trio.CapacityLimiter(1)
        self._other_threads = trio.CapacityLimiter(_OTHER_THREADS)

    async def put(self, key: str, body: Body) -> None:
        """Store a file; see `Storage.put`.

        A cancel has no effect while a thread writes the file. So nothing is written after a return or an
        exception, unless the disk hangs for more than `_FINISH_S`.
        """
        parts = tree.split_key(key)
        if body.data is not None:
            put = tree.Put(parts=parts, body=body, data=body.data)
            try:
                error = await self.small.submit(put)
            except CommitAbandoned:
                raise StorageError(f"file {key!r} was not stored: the storage is closed") from None
            if error is not None:
                raise error
        elif body.path is not None:
            move = partial(tree.move, self._root, parts, body, body.path)
            await self._in_thread(key, move, chosen=body.key_exists is not None)
        else:
            raise ValueError("a Body has either data or a path")

    async def delete(self, key: str) -> None:
        """Delete a file; see `Storage.delete`. Without fsync: a power failure may restore the file."""
        await self._in_thread(key, partial(tree.delete, self._root.path, tree.split_key(key)))

    async def local(self, key: str) -> StoredFile | None:
        """Find a file; see `Storage.local`. `None` for an invalid key."""
        try:
            parts = tree.split_key(key)
        except StorageRefused:
            return None
        return await self._in_thread(key, partial(tree.find, self._root.path, parts))

    async def size(self, key: str) -> int | None:
        """Bytes of a file, `None` if missing; see `Storage`."""
        look = partial(tree.find, self._root.path, tree.split_key(key), sync=self._root.fsync)
        file = await self._in_thread(key, look)
        return None if file is None else file.size

    def url(self, key: str) -> str:  # noqa: ARG002  # required by the protocol
        """See `Storage.url`: the API serves the files."""
        return ""

    async def _write(self, puts: Sequence[tree.Put]) -> Sequence[Exception | None]:
        await trio.to_thread.run_sync(tree.write_all, self._root, puts, limiter=self._writer)
        return [put.error for put in puts]

    async def _in_thread(self, key: str, call: Callable[[], T], *, chosen: bool = False) -> T:
        try:
            return await trio.to_thread.run_sync(call, limiter=self._other_threads)
        except OSError as exc:
            raise tree.storage_error(key, exc, chosen=chosen) from exc
