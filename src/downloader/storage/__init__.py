"""What a storage plugin is; plugins import this module and `downloader.errors`, nothing else.

An entry point of group `downloader.storages.v1` names a *factory*: a callable that takes the parsed
TOML table of its section (`[processor.filestorage]` without `type`) and gives an async context manager
that yields a `Storage`. Opening checks that the storage can be written. The service fills an empty
`rootdir` in with a folder under its data dir.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from downloader.errors import StorageError, StorageRefused
from downloader.registry import parse_section

__all__ = [
    "Body",
    "Storage",
    "StorageError",
    "StorageFactory",
    "StorageRefused",
    "StoredFile",
    "parse_section",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A complete file that waits to be stored: either small, in memory, or a spool file on disk."""

    size: int
    """Bytes."""
    sha256: str
    """Lower-case hexadecimal digest of the bytes."""
    mime_type: str
    data: bytes | None = None
    path: Path | None = None
    """A closed file, already fsynced, that the storage may move away or leave; exactly one of
    `data` and `path` is given."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    still_ours: Callable[[], bool] = lambda: True
    """Safe to call from any thread; a storage asks it right before the step that publishes, and raises
    `StorageError` without publishing when it answers false: another instance has taken the job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """Where a stored file can be read by this process."""

    path: Path
    size: int


class Storage(Protocol):
    """Keeps files under keys such as `folder/NSb/NSb4FOAs9fVaQw` (relative, `/`-separated, no `..`)."""

    async def put(self, key: str, body: Body) -> None:
        """Store the file; on return it is complete and durable under `key`, replacing an older one.

        When it raises or is cancelled, `key` holds what it held before, or the complete new file.

        Raises:
            StorageError: it could not be stored; a later try may succeed.
            StorageRefused: the destination itself is at fault; final.
        """

    async def delete(self, key: str) -> None:
        """Delete the file; one that is not there is no error.

        Raises:
            StorageError: it could not be deleted; a later try may succeed.
        """

    async def local(self, key: str) -> StoredFile | None:
        """The file for `GET /files/<key>`; `None` if there is none or this storage has no local files."""


StorageFactory = Callable[[Mapping[str, Any]], AbstractAsyncContextManager[Storage]]
"""Raises `downloader.errors.PluginError` for a section it refuses (naming the key) or cannot open."""
