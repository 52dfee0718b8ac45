"""The interface of storage plugins, and the `StorageHost` that a storage gets from the service.

An entry point of group `downloader.storages.v1` names a *factory*, `open_x(section, host)`: a callable that
takes the parsed TOML table of its section (`[processor.filestorage]` without `type`) and a `StorageHost`, and
returns an async context manager that yields a `Storage`. Opening checks that the storage can be written. The
service replaces an empty `rootdir` by a folder under its data dir.

A job may name a bucket. An entry point of group `downloader.buckets.v1` names a factory of the same form that
yields `Buckets`; the section is `[processor.NAME]`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from downloader.groupcommit import GroupCommit
from downloader.model import KeyExists
from downloader.paths import is_safe_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A complete file to be stored: a small file in memory, or a spool file on disk."""

    size: int
    """Bytes."""
    sha256: str
    """Lower-case hexadecimal digest of the bytes."""
    mime_type: str
    """The type that the bytes have, or the `content_type` of the job."""
    data: bytes | None = None
    path: Path | None = None
    """A closed and fsynced file, which the storage may move or leave. Either `data` or `path` is given."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    content_disposition: str = ""
    """For the header of the object; a storage without headers ignores the value."""
    key_exists: KeyExists | None = None
    """The rule for a file of another job under a key that the client has chosen. `None`: the key is made from
    the job's id, so an existing file comes from an earlier attempt and is replaced."""
    still_ours: Callable[[], bool] = lambda: True
    """Returns false after the job was lost to a different instance. A storage calls this, in any thread,
    right before publishing the file; on false, `put` raises `StorageError` and publishes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A stored file that the process can read."""

    path: Path
    size: int


class Storage(Protocol):
    """Keeps files under keys like `folder/NSb/NSb4FOAs9fVaQw` (relative, `/`-separated, no `..`).

    A storage may have a further method, `async size(key) -> int | None`: the bytes of a complete and durable
    file; `None` if there is none. It raises `StorageError`, or `StorageRefused` if it may not look. With the
    method, files under keys with `{sha256}` are counted: stored once, and deleted after the last job.
    """

    async def put(self, key: str, body: Body) -> None:
        """Store a file durably under `key`, and replace an older file.

        A storage with the attribute `knows_key_exists = True` also gets bodies with `key_exists` `keep` and
        `fail`. It then stores nothing if there is an older file; the check and the storing are one atomic
        step. With `fail` it raises `KeyTaken`, unless the older file has the same bytes, since that may come
        from an earlier attempt.

        After an exception or a cancel, `key` has either the old file (or none) or the complete new file.

        Raises:
            StorageError: the file could not be stored; a later try may succeed.
            StorageRefused: the destination is at fault; a later try would fail too.
            KeyTaken: see above.
        """

    async def delete(self, key: str) -> None:
        """Delete the file; a missing file is no error.

        Raises:
            StorageError: the file could not be deleted; a later try may succeed.
        """

    async def local(self, key: str) -> StoredFile | None:
        """The file for `GET /files/<key>`; `None` if missing, or if the storage has no local files."""

    def url(self, key: str) -> str:
        """The file's absolute URL for clients, without credentials; `""` for a file that only `local` has.

        Does no I/O. Used as `download_url` if `processor.download_url` is not set.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageHost:
    """Resources of the service for storages and `Buckets`."""

    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("downloader.storage"))
    """Writes messages from `WARNING` on to the service's log; texts must not contain secrets."""
    group_commit: type[GroupCommit[Any, Any]] = GroupCommit
    """Combines puts from many tasks in batches; see `GroupCommit`."""


_BUCKET = re.compile(r"(?!\d+\.\d+\.\d+\.\d+$)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html"""

_OTHER_KIND = re.compile(r".*(?:--[a-z]+-s3|\.mrap)")
"""Names that AWS reserves for directory buckets and access point aliases, which are on different hosts."""


def is_bucket_name(name: str) -> bool:
    """Whether `name` is valid for a general-purpose bucket of S3, and so safe as part of a URL."""
    return _BUCKET.fullmatch(name) is not None and _OTHER_KIND.fullmatch(name) is None


_GOOGLE_BUCKET = re.compile(r"(?!\d+\.\d+\.\d+\.\d+$)(?!.*\.\.)[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
"""https://cloud.google.com/storage/docs/buckets#naming"""

_AZURE_CONTAINER = re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
"""https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules#microsoftstorage"""

_IS_NAME: Mapping[str, Callable[[str], object]] = {
    "s3": is_bucket_name,
    "gs": _GOOGLE_BUCKET.fullmatch,
    "az": _AZURE_CONTAINER.fullmatch,
}


class BucketUrl(NamedTuple):
    """A bucket, and a prefix of the keys there. The name is safe as part of a URL."""

    scheme: str
    """`s3`, `gs` (Google) or `az` (Azure)."""
    name: str
    prefix: str
    """Empty, or ends with a slash."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `gs://NAME` or `gs://NAME/PREFIX`; a slash at the end is ignored.

        Raises:
            ValueError: malformed.
        """
        scheme, _, rest = text.partition("://")
        name, _, prefix = rest.partition("/")
        prefix = prefix.removesuffix("/")
        if scheme not in _IS_NAME:
            raise ValueError("must begin with s3://, gs:// or az://")
        if not _IS_NAME[scheme](name):
            raise ValueError("has no valid name of a bucket")
        if prefix and not is_safe_path(prefix):
            raise ValueError("has a prefix that is no folder: its parts must be printable, and no dots")
        return cls(scheme, name, f"{prefix}/" if prefix else "")

    @property
    def bucket(self) -> str:
        """The bucket without the prefix, such as `gs://NAME`."""
        return f"{self.scheme}://{self.name}"


class Buckets(Protocol):
    """Access to the buckets that jobs name.

    `name` is the name of an S3 bucket, or `gs://NAME` or `az://NAME` with an empty `region`.
    """

    async def bucket(self, name: str, region: str) -> Storage:
        """The bucket as a storage, usable until the `Buckets` are closed; calling again is cheap.

        The bucket need not exist; if it does not, `put` raises `StorageRefused`.

        Raises:
            StorageError: not possible now; a later try may succeed.
            StorageRefused: a later try would fail too.
        """

    def url(self, name: str, region: str, key: str) -> str:
        """Like `Storage.url`, for a key in a bucket."""
