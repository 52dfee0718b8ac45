"""File storages: the interface of storage plugins, and the code that opens storages."""

from __future__ import annotations

from downloader.errors import KeyTaken, StorageError, StorageRefused
from downloader.globs import text_globs
from downloader.groupcommit import CommitAbandoned, GroupCommit
from downloader.plugins import parse_section
from downloader.storage.opening import (
    CLOUD_BUCKETS,
    OWN_BUCKETS,
    buckets_plugin,
    open_buckets,
    open_storage,
    storage_plugin,
)
from downloader.storage.protocol import (
    Body,
    Buckets,
    BucketUrl,
    Storage,
    StorageHost,
    StoredFile,
    is_bucket_name,
)
from downloader.tasks import background

__all__ = [
    "CLOUD_BUCKETS",
    "OWN_BUCKETS",
    "Body",
    "BucketUrl",
    "Buckets",
    "CommitAbandoned",
    "GroupCommit",
    "KeyTaken",
    "Storage",
    "StorageError",
    "StorageHost",
    "StorageRefused",
    "StoredFile",
    "background",
    "buckets_plugin",
    "is_bucket_name",
    "open_buckets",
    "open_storage",
    "parse_section",
    "storage_plugin",
    "text_globs",
]
