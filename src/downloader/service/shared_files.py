"""Files that jobs share: equal files under a key with `{sha256}` are stored once, and go with the last job.

`docs/design/shared-files.md` has the protocol.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from downloader.errors import StorageError, StorageRefused, StoreError
from downloader.fetch import CompleteBody
from downloader.model import JobSpec
from downloader.scheduler import Clock, boottime
from downloader.signals import failpoint
from downloader.storage import Storage
from downloader.store import JobStore, Sharing

MARK_S = 240.0
"""How long a deletion keeps others from storing the file. Shorter than `HOLD_S` of the reaper, so that after
the death of one reaper the next finds the file free."""

BEGIN_S = 120.0
"""A deletion begins by then or not at all: the rest of `MARK_S` is for requests to the storage under way."""

PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
"""First and longest pause between two looks whether a deletion is over; most take milliseconds."""

MAY_BE_THERE = -1
"""In place of a size, if the storage does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFiles:
    """Counts the jobs of each shared file in the service's storage."""

    store: JobStore
    storage: Storage
    clock: Clock = boottime

    async def share(self, spec: JobSpec, body: CompleteBody) -> bool:
        """Count a job as a sharer before the file is stored; returns whether the file is to be stored.

        Waits while the file is being deleted. With a storage that does not know sizes, nothing is counted,
        and the file is never deleted.

        Raises:
            StorageError: the job cannot be counted now.
            StorageRefused: the job has shared too many files.
        """
        size_of: Callable[[str], Awaitable[int | None]] | None = getattr(self.storage, "size", None)
        if size_of is None:
            return True
        key = spec.storage_key(body.sha256)
        share = partial(self.store.share_file, spec.id, key, body.sha256)
        pause_s = PAUSE_S
        while (answer := await _answer(share)) is Sharing.WAIT:
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        if answer is Sharing.OVER:
            raise StorageError(f"file {key!r} was not stored: the job is over")
        if answer is Sharing.MANY:
            raise StorageRefused("the job has stored too many different files")
        failpoint("after-share")
        try:
            size = await size_of(key)
        except StorageRefused:
            size = MAY_BE_THERE
        if answer is Sharing.FOREIGN:
            if size is None:
                await _answer(partial(share, ours=True))
            return True
        return size != body.size or spec.key_exists == "fail"

    async def delete(self, spec: JobSpec, sha256: str) -> None:
        """Remove a job from the sharers of a file, and delete the file if there is no other sharer.

        Raises:
            StorageError: not now; a later try may succeed.
        """
        key, begin_by = spec.storage_key(sha256), self.clock() + BEGIN_S
        unshare = partial(self.store.unshare_file, spec.id, key, secrets.token_hex(8), MARK_S)
        answer = await _answer(unshare)
        if answer is Sharing.DELETE:
            failpoint("before-delete")
            if self.clock() > begin_by:
                raise StorageError("the deletion would begin too late")
            await self.storage.delete(key)
            failpoint("after-delete")
            answer = await _answer(partial(unshare, deleted=True))
        if answer is Sharing.WAIT:
            raise StorageError("another instance deletes the file")


async def _answer(ask: Callable[[], Awaitable[Sharing]]) -> Sharing:
    try:
        return await ask()
    except StoreError as error:
        raise StorageError(str(error)) from error
