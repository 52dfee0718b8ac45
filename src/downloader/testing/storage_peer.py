"""Tools for the tests of storages: the peer, files, and calls whose results are checked."""

from __future__ import annotations

import hashlib
import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from pathlib import Path

import trio

from downloader.model import KeyExists
from downloader.storage import Body, Storage, StorageError
from downloader.testing.contract import Peer, Run, check_line
from downloader.testing.tcp_proxy import Fault


class StoragePeer(Peer):
    """A storage's peer, to be written for each plugin; the server is empty at first.

    `section` is `[processor.filestorage]` without `type`.
    """

    conditional: bool = True
    """Whether the server takes conditional writes in one step. Some imitations of S3 look first, and then
    write."""

    syncs: bool = True
    """Whether a file that `local` finds has to be synced to the disk. `False` if another program does that,
    or if the section in this test switches it off."""

    def broken(self, fault: Fault) -> AbstractAsyncContextManager[None]:
        """Make the peer fail while the context is open: nothing can be stored."""
        raise NotImplementedError(f"write broken(), or take {fault!r} out of `faults`")

    @abstractmethod
    async def read(self, key: str) -> bytes | None:
        """The stored bytes, read without the plugin; `None` if there is no such key."""

    @abstractmethod
    async def keys(self) -> Collection[str]:
        """Everything that is stored, listed without the plugin: keys, and what unfinished puts have left."""


@contextmanager
def a_body(
    size: int,
    *,
    spooled: bool = False,
    still_ours: Callable[[], bool] = lambda: True,
    key_exists: KeyExists | None = None,
) -> Iterator[tuple[Body, bytes]]:
    """A file to be stored with the bytes, in memory or in a spool file that is removed at the end."""
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
                key_exists=key_exists,
            ),
            data,
        )


async def put(run: Run[StoragePeer], storage: Storage, key: str, body: Body) -> None:
    """Call `put` within the time limit."""
    await run.bounded(partial(storage.put, key, body), run.times.answer_s, f"put() of {body.size} bytes")


async def delete(run: Run[StoragePeer], storage: Storage, key: str) -> None:
    """Call `delete` within the time limit; only `StorageError` may be raised."""
    try:
        await run.bounded(partial(storage.delete, key), run.times.answer_s, "delete()")
    except (StorageError, AssertionError):
        raise
    except Exception as error:
        raise AssertionError(f"delete() raised {error!r}, which is no StorageError") from error


async def fails(run: Run[StoragePeer], storage: Storage, key: str, body: Body, when: str) -> None:
    """Call `put` where `StorageError` has to be raised."""
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
    """Check that the key has exactly the given bytes."""
    content = await run.peer.read(key)
    assert content == data, f"{key!r} has {short(content)}, and {short(data)} were put"


async def stored(
    run: Run[StoragePeer], storage: Storage, key: str, size: int, *, spooled: bool = False
) -> bytes:
    """Put a new file of a size, and check that the key has exactly the same bytes; returns the bytes."""
    with a_body(size, spooled=spooled) as (body, data):
        await put(run, storage, key, body)
    await holds(run, key, data)
    return data


async def only(run: Run[StoragePeer], *keys: str) -> None:
    """Wait until exactly the given keys are stored: a cancelled put may take a moment to clean up."""
    stored: set[str] = set()
    with trio.move_on_after(run.times.settle_s):
        while (stored := set(await run.peer.keys())) != set(keys):  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.02)
    missing, more = set(keys) - stored, stored - set(keys)
    assert not missing, f"missing: {sorted(missing)}"
    assert not more, f"left over: {sorted(more)}"


def short(data: bytes | None) -> str:
    """A file, described for a message."""
    if data is None:
        return "nothing"
    return f"{len(data)} bytes ({hashlib.sha256(data).hexdigest()[:12]})"
