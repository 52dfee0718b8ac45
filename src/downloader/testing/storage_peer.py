"""What the tests of storages need: the peer, files, and calls whose results are checked."""

from __future__ import annotations

import hashlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio

from downloader.storage import Body, Storage, StorageError, StorageHost
from downloader.testing.contract import Run, check_line
from downloader.testing.tcp_proxy import Fault


class StoragePeer(ABC):
    """What the suite has to know of a storage and what is behind it. It begins empty."""

    section: Mapping[str, Any]
    """`[processor.filestorage]` without `type`, as it should be for this peer."""
    bad_section: Mapping[str, Any]
    """One that is refused, for one key that differs from `section`."""
    hasty: Mapping[str, Any] = MappingProxyType({})
    """Keys laid over `section` where the peer is about to fail: short time-outs, such as a second or two."""
    secrets: Sequence[str] = ()
    """Passwords and tokens in the section: no message may hold them."""
    faults: Sequence[Fault] = tuple(Fault)
    """The ways to fail that `broken` can bring about; for what is not on a network `AWAY` alone."""

    @abstractmethod
    def open(self, section: Mapping[str, Any], host: StorageHost) -> AbstractAsyncContextManager[Storage]:
        """The plugin's own context manager: its factory, called with these."""

    @abstractmethod
    def broken(self, fault: Fault) -> AbstractAsyncContextManager[None]:
        """Within, nothing can be stored."""

    @abstractmethod
    async def read(self, key: str) -> bytes | None:
        """The stored bytes, not through the plugin; `None`: there is nothing under this key."""

    @abstractmethod
    async def keys(self) -> Collection[str]:
        """All that is there, not through the plugin: keys, and whatever unfinished puts have left."""


@contextmanager
def a_body(
    size: int, *, spooled: bool = False, still_ours: Callable[[], bool] = lambda: True
) -> Iterator[tuple[Body, bytes]]:
    """A file that waits to be stored, and its bytes; in memory or in a spool file, removed at the end."""
    data = os.urandom(size)
    with tempfile.TemporaryDirectory(prefix="downloader-contract-") as folder:
        path = Path(folder, "spool")
        if spooled:
            path.write_bytes(data)
        yield (
            Body(
                size=size,
                sha256=hashlib.sha256(data).hexdigest(),
                mime_type="application/octet-stream",
                data=None if spooled else data,
                path=path if spooled else None,
                still_ours=still_ours,
            ),
            data,
        )


async def put(run: Run[StoragePeer], storage: Storage, key: str, body: Body) -> None:
    """Put, in time."""
    await run.bounded(partial(storage.put, key, body), run.times.answer_s, f"put() of {body.size} bytes")


async def delete(run: Run[StoragePeer], storage: Storage, key: str) -> None:
    """Delete, in time."""
    await run.bounded(partial(storage.delete, key), run.times.answer_s, "delete()")


async def fails(run: Run[StoragePeer], storage: Storage, key: str, body: Body, when: str) -> None:
    """Put what cannot be stored."""
    try:
        await put(run, storage, key, body)
    except StorageError as error:
        check_line(str(error), run.peer.secrets, "the StorageError")
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"a put {when} raised {error!r}, which is no StorageError") from error
    else:
        raise AssertionError(f"a put of {body.size} bytes {when} reported success")


async def holds(run: Run[StoragePeer], key: str, data: bytes) -> None:
    """Exactly these bytes stand under the key."""
    found = await run.peer.read(key)
    assert found == data, f"under {key!r} stands {short(found)}, and {short(data)} were put"


async def only(run: Run[StoragePeer], *keys: str) -> None:
    """Nothing but these is there; what a cancelled put has to tidy up may take a moment."""
    found: set[str] = set()
    with trio.move_on_after(run.times.settle_s):
        while (found := set(await run.peer.keys())) != set(keys):  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.02)
    missing, more = set(keys) - found, found - set(keys)
    assert not missing, f"missing: {sorted(missing)}"
    assert not more, f"left over: {sorted(more)}"


def short(data: bytes | None) -> str:
    """A file for a message."""
    if data is None:
        return "nothing"
    return f"{len(data)} bytes ({hashlib.sha256(data).hexdigest()[:12]})"
