"""Wrappers of storage plugins. They raise only `StorageError`, with one line that the store can keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from downloader.errors import StorageError, StorageRefused
from downloader.plugins import find_cancel, one_line
from downloader.storage.protocol import Body, Buckets, Storage, StoredFile


@contextmanager
def _checked(call: str) -> Iterator[None]:
    try:
        yield
    except StorageError as exc:
        kind = StorageRefused if isinstance(exc, StorageRefused) else StorageError
        raise kind(one_line(str(exc))) from exc
    # A plugin can raise anything, SystemExit too. Its text may hold a secret: the message has the type only.
    except BaseException as exc:
        if (cancel := find_cancel(exc)) is not None:
            raise cancel from None
        raise StorageError(f"the storage failed: {call}() raised {type(exc).__name__}") from exc


def _wrong(call: str, result: object) -> StorageError:
    return StorageError(f"the storage failed: {call}() answered {type(result).__name__}")


def _url(get: Callable[[], object]) -> str:
    with _checked("url"):
        url = get()
    if not isinstance(url, str):
        raise _wrong("url", url)
    return url


@dataclass(frozen=True, slots=True)
class CheckedStorage:
    """`Storage`; `local` and `url` raise StorageError too."""

    plugin: Storage

    async def put(self, key: str, body: Body) -> None:
        """See `Storage.put`."""
        with _checked("put"):
            await self.plugin.put(key, body)

    async def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        with _checked("delete"):
            await self.plugin.delete(key)

    async def local(self, key: str) -> StoredFile | None:
        """See `Storage.local`."""
        with _checked("local"):
            found: object = await self.plugin.local(key)
        if found is not None and not isinstance(found, StoredFile):
            raise _wrong("local", found)
        return found

    def url(self, key: str) -> str:
        """See `Storage.url`."""
        return _url(lambda: self.plugin.url(key))


@dataclass(frozen=True, slots=True)
class CheckedBuckets:
    """`Buckets`; `url` raises StorageError too."""

    plugin: Buckets

    async def bucket(self, name: str, region: str) -> Storage:
        """See `Buckets.bucket`."""
        with _checked("bucket"):
            return CheckedStorage(await self.plugin.bucket(name, region))

    def url(self, name: str, region: str, key: str) -> str:
        """See `Buckets.url`."""
        return _url(lambda: self.plugin.url(name, region, key))
