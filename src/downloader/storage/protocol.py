"""What a storage plugin is, and what the service lends it.

An entry point of group `downloader.storages.v1` names a *factory*, `open_x(section, host)`: a callable that
takes the parsed TOML table of its section (`[processor.filestorage]` without `type`) and a `StorageHost`, and
gives an async context manager that yields a `Storage`. Opening checks that the storage can be written. The
service fills an empty `rootdir` in with a folder under its data dir.

Jobs may bring a bucket of their own. An entry point of group `downloader.buckets.v1` names a factory of the
same shape that yields `Buckets`; it gets the keys of `[processor.NAME]` that are for it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from downloader.groupcommit import GroupCommit


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

    def url(self, key: str) -> str:
        """Where clients find the file: an absolute URL without credentials, or `""` if only `local` has it.

        No I/O. It becomes `download_url` where the operator has set no `processor.download_url`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageHost:
    """What the service lends a storage, and what gives access to buckets."""

    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("downloader.storage"))
    """Writes to the service's log, from `WARNING` on; texts may hold no secrets."""
    group_commit: type[GroupCommit[Any, Any]] = GroupCommit
    """Gathers puts from many tasks into batches; see `GroupCommit`."""


StorageFactory = Callable[[Mapping[str, Any], StorageHost], AbstractAsyncContextManager[Storage]]
"""Raises `downloader.errors.PluginError` for a section it refuses (naming the key) or cannot open."""


_BUCKET = re.compile(r"(?!\d+\.\d+\.\d+\.\d+$)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html"""

_OTHER_KIND = re.compile(r".*(?:--[a-z]+-s3|\.mrap)")
"""Names that AWS keeps for other kinds of buckets and aliases, which are at other hosts."""


def is_bucket_name(name: str) -> bool:
    """Whether S3 has general-purpose buckets of such names; nothing else in a URL fits."""
    return _BUCKET.fullmatch(name) is not None and _OTHER_KIND.fullmatch(name) is None


class Buckets(Protocol):
    """Gives access to buckets that clients name in their jobs."""

    async def bucket(self, name: str, region: str) -> Storage:
        """The bucket as a storage, cheap to ask for again; usable until the `Buckets` are closed.

        It may answer for a bucket that is not there: then `put` raises `StorageRefused`.

        Raises:
            StorageError: it cannot be had now; a later try may succeed.
            StorageRefused: it never can.
        """

    def url(self, name: str, region: str, key: str) -> str:
        """As `Storage.url`, of a key in this bucket."""


BucketsFactory = Callable[[Mapping[str, Any], StorageHost], AbstractAsyncContextManager[Buckets]]
"""As `StorageFactory`; opening may not need any bucket to exist."""
