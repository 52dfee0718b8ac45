"""The contract of storages, as tests."""

from __future__ import annotations

import re
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

import trio

from downloader.net import Url, UrlError
from downloader.storage import Body, Storage, StorageError, StorageHost
from downloader.testing.contract import Contract, Run, check_line, promise
from downloader.testing.resources import resources
from downloader.testing.storage_peer import StoragePeer, a_body, delete, fails, holds, only, put, short
from downloader.testing.tcp_proxy import Fault

_MANY = 40
_RIVALS = 8
_OTHERS = 3
_CANCELS_S = (0.0, 0.002, 0.02, 0.1)
"""Moments at which a put is cancelled: before it does anything, and while it writes."""
_KEY = "NSb/NSb4FOAs9fVaQw"
_ODD_KEYS = (
    "a/b/c/d/e/f/g/h/NSb/NSb4FOAs9fVaQw",
    "with space/NSb/NSb4FOAs9fVaQw",
    "h\u00e9llo/\u4e0b\u8f7d/\U0001f642/NSb/NSb4FOAs9fVaQw",
    "a+b&c=d?e#f;g,h!i'(j)~@$*[k]{l}/NSb/NSb4FOAs9fVaQw",
    "a..b/c.d/NSb/NSb4FOAs9fVaQw",
    "a b/NSb/1",
    "a%20b/NSb/1",
    "a+b/NSb/1",
)
"""Subpaths as clients may give them, and the last three, which are easily taken for one another."""
_URL = re.compile(r"[!-~]+")
"""Visible ASCII (RFC 3986, 2)."""


class StorageContract(Contract[StoragePeer]):
    """Inherit it, and give it a peer; see `NotifierContract`."""

    large_bytes: int = 6 * 1024 * 1024 + 17
    """Size of a large file; more than one part, for a storage that uploads in parts."""

    def lend(self) -> AbstractAsyncContextManager[StorageHost]:
        """A host like the service's."""
        return nullcontext(StorageHost())

    @promise
    async def test_a_stored_file_is_complete(self, run: Run[StoragePeer]) -> None:
        """When `put` returns, they stand under the key: from memory, from a spool file, or none at all."""
        async with run.opened() as storage:
            for number, size in enumerate((1, 70_000, 0)):
                with a_body(size) as (body, data):
                    await put(run, storage, f"{_KEY}{number}", body)
                await holds(run, f"{_KEY}{number}", data)
            for number, size in enumerate((1, self.large_bytes, 0)):
                with a_body(size, spooled=True) as (body, data):
                    await put(run, storage, f"spooled/{_KEY}{number}", body)
                await holds(run, f"spooled/{_KEY}{number}", data)

    @promise
    async def test_a_file_replaces_an_older_one(self, run: Run[StoragePeer]) -> None:
        """A second put of a key, longer, shorter or large, leaves the new file and nothing of the old one."""
        async with run.opened() as storage:
            for size, spooled in ((1000, False), (2000, False), (self.large_bytes, True), (10, False)):
                with a_body(size, spooled=spooled) as (body, data):
                    await put(run, storage, _KEY, body)
                await holds(run, _KEY, data)
            await only(run, _KEY)

    @promise
    async def test_a_deleted_file_is_gone(self, run: Run[StoragePeer]) -> None:
        """`delete` deletes this file and no other; one that is not there is no error, once more or ever."""
        async with run.opened() as storage:
            await delete(run, storage, _KEY)
            with a_body(100) as (body, data):
                await put(run, storage, _KEY, body)
                await put(run, storage, f"{_KEY}x", body)
            await delete(run, storage, _KEY)
            await delete(run, storage, _KEY)
            assert await run.peer.read(_KEY) is None, "the deleted file is there"
            assert await storage.local(_KEY) is None, "local() finds the deleted file"
            await holds(run, f"{_KEY}x", data)
            await only(run, f"{_KEY}x")

    @promise
    async def test_a_job_that_is_anothers_publishes_nothing(self, run: Run[StoragePeer]) -> None:
        """`still_ours` answers false: `StorageError`, the key is as it was, and nothing is left over."""
        async with run.opened() as storage:
            await self._lost(run, storage, None)
            with a_body(100) as (body, data):
                await put(run, storage, _KEY, body)
            await self._lost(run, storage, data)

    async def _lost(self, run: Run[StoragePeer], storage: Storage, before: bytes | None) -> None:
        for size, spooled in ((50, False), (50, True), (self.large_bytes, True)):
            with a_body(size, spooled=spooled, still_ours=lambda: False) as (body, _):
                await fails(run, storage, _KEY, body, "whose job is another's")
            assert await run.peer.read(_KEY) == before, "a put whose job is another's has changed the file"
        await only(run, *([_KEY] if before is not None else []))

    @promise
    async def test_it_asks_whose_the_job_is(self, run: Run[StoragePeer]) -> None:
        """Every put that is published has asked `still_ours` before."""
        async with run.opened() as storage:
            for size, spooled in ((50, False), (50, True), (self.large_bytes, True)):
                asked: list[bool] = []
                with a_body(size, spooled=spooled, still_ours=lambda: not asked.append(True)) as (body, _):  # type: ignore[func-returns-value]  # noqa: B023 - called within this turn
                    await put(run, storage, _KEY, body)
                assert asked, "it was published without asking still_ours()"

    @promise
    async def test_a_cancel_leaves_the_old_file_or_the_new(self, run: Run[StoragePeer]) -> None:
        """A put that is cancelled at any moment returns promptly; no torn file, and the next put works."""
        async with run.opened() as storage:
            with a_body(300) as (body, old):
                await put(run, storage, _KEY, body)
            for size, spooled in ((70_000, False), (self.large_bytes, True)):
                for after_s in _CANCELS_S:
                    with a_body(size, spooled=spooled) as (body, new):
                        call = partial(storage.put, _KEY, body)
                        await run.cancelled(call, after_s=after_s, what="a put")
                        found = await run.peer.read(_KEY)
                        assert found in (old, new), f"a cancelled put has left {short(found)}"
                    old = found or b""
            with a_body(99) as (body, data):
                await put(run, storage, _KEY, body)
            await holds(run, _KEY, data)
            await only(run, _KEY)

    @promise
    async def test_many_are_stored_at_once(self, run: Run[StoragePeer]) -> None:
        """`put` is called from many tasks; every file is complete and in its place."""
        stored: dict[str, bytes] = {}

        async def one(storage: Storage, number: int) -> None:
            large = number % 20 == 0
            with a_body(self.large_bytes if large else 1000 + number, spooled=large) as (body, data):
                stored[f"{number % 7}/{number}"] = data
                await put(run, storage, f"{number % 7}/{number}", body)

        async with run.opened() as storage:
            async with trio.open_nursery() as nursery:
                for number in range(_MANY):
                    nursery.start_soon(one, storage, number)
            for key, data in stored.items():
                await holds(run, key, data)
            await only(run, *stored)

    @promise
    async def test_rivals_leave_one_complete_file(self, run: Run[StoragePeer]) -> None:
        """Puts of one key at once: whichever is last, the file is one of them from end to end."""
        candidates: list[bytes] = []

        async def one(storage: Storage, number: int) -> None:
            large = number % 2 == 0
            with a_body(self.large_bytes if large else 500, spooled=large) as (body, data):
                candidates.append(data)
                await put(run, storage, _KEY, body)

        async with run.opened() as storage:
            async with trio.open_nursery() as nursery:
                for number in range(_RIVALS):
                    nursery.start_soon(one, storage, number)
            found = await run.peer.read(_KEY)
            assert found in candidates, f"the file is none of those that were put: {short(found)}"
            await only(run, _KEY)

    @promise
    async def test_keys_are_taken_as_they_are(self, run: Run[StoragePeer]) -> None:
        """Subpaths with blanks, signs and any script: each key is a file of its own."""
        stored: dict[str, bytes] = {}
        async with run.opened() as storage:
            for key in _ODD_KEYS:
                with a_body(200) as (body, stored[key]):
                    await put(run, storage, key, body)
            for key, data in stored.items():
                await holds(run, key, data)
            await only(run, *stored)
            for key in stored:
                await delete(run, storage, key)
            await only(run)

    @promise
    async def test_local_is_the_stored_file(self, run: Run[StoragePeer]) -> None:
        """`local` gives the file with its size, or always `None`; `None` for what is not there."""
        async with run.opened() as storage:
            assert await storage.local(_KEY) is None, "local() finds what was never stored"
            for size, spooled in ((5000, False), (self.large_bytes, True)):
                with a_body(size, spooled=spooled) as (body, data):
                    await put(run, storage, _KEY, body)
                found = await storage.local(_KEY)
                if found is None:
                    continue
                assert found.size == len(data), (
                    f"local() says {found.size} bytes, and {len(data)} were stored"
                )
                assert await trio.Path(found.path).read_bytes() == data, "local() leads to another file"

    @promise
    async def test_a_file_can_be_found(self, run: Run[StoragePeer]) -> None:
        """`url` is absolute and without credentials, another for each key; or `""`, and `local` has it."""
        urls: set[str] = set()
        async with run.opened() as storage:
            for key in _ODD_KEYS:
                with a_body(10) as (body, _):
                    await put(run, storage, key, body)
                url = storage.url(key)
                if not url:
                    assert await storage.local(key) is not None, "neither url() nor local() leads to the file"
                    continue
                try:
                    parsed = Url.parse(url)
                except UrlError as exc:
                    raise AssertionError(f"url() is {url!r}, which {exc.detail}") from None
                assert not parsed.basic, "url() holds credentials"
                assert not [secret for secret in run.peer.secrets if secret in url], "url() holds a secret"
                assert _URL.fullmatch(url), f"url() is {url!r}: not encoded"
                assert url not in urls, f"url() is {url!r} for two keys"
                urls.add(url)

    @promise
    async def test_while_it_is_away_nothing_succeeds(self, run: Run[StoragePeer]) -> None:
        """What is behind it fails: `StorageError` in time, the old file stays; later it works again."""
        await self._outage(run, Fault.AWAY)

    @promise
    async def test_while_it_is_silent_nothing_succeeds(self, run: Run[StoragePeer]) -> None:
        """It takes the connection and answers nothing: that is no success."""
        await self._outage(run, Fault.SILENT)

    @promise
    async def test_a_lost_answer_is_no_success(self, run: Run[StoragePeer]) -> None:
        """The connection ends in place of the answer: that is no success."""
        await self._outage(run, Fault.CUT)

    async def _outage(self, run: Run[StoragePeer], fault: Fault) -> None:
        if fault not in run.peer.faults:
            return
        async with run.opened(hasty=True) as storage:
            with a_body(300) as (body, old):
                await put(run, storage, _KEY, body)
                await put(run, storage, f"{_KEY}x", body)
            tried = [old]
            async with run.peer.broken(fault):
                for size, spooled in ((400, False), (self.large_bytes, True)):
                    with a_body(size, spooled=spooled) as (body, data):
                        await fails(run, storage, _KEY, body, f"while the storage is {fault}")
                    tried.append(data)
                try:
                    await run.bounded(partial(storage.delete, f"{_KEY}x"), run.times.answer_s, "delete()")
                    deleted = True
                except StorageError as error:
                    check_line(str(error), run.peer.secrets, "the StorageError")
                    deleted = False
            found = await run.peer.read(_KEY)
            # Whether a request whose answer was lost has been carried out is for the peer to say.
            allowed = tried if fault is Fault.CUT else [old]
            assert found in allowed, f"failed puts have left {short(found)}"
            if deleted:
                gone = await run.peer.read(f"{_KEY}x") is None
                assert gone, "delete() reported success while the storage was broken, and the file is there"
            await self._recovers(run, storage)

    async def _recovers(self, run: Run[StoragePeer], storage: Storage) -> None:
        with a_body(self.large_bytes, spooled=True) as (body, data), a_body(20) as (small, _):
            deadline = time.monotonic() + run.times.recover_s
            while True:
                try:
                    await put(run, storage, f"{_KEY}y", small)
                    await put(run, storage, _KEY, body)
                except StorageError:
                    if time.monotonic() > deadline:
                        raise
                    await trio.sleep(0.05)
                else:
                    break
        await holds(run, _KEY, data)
        await delete(run, storage, f"{_KEY}x")
        await delete(run, storage, f"{_KEY}y")
        await only(run, _KEY)

    @promise
    async def test_files_outlive_the_storage(self, run: Run[StoragePeer]) -> None:
        """Closed and opened again, with nothing done or with files: they are there, and can be replaced."""
        async with run.opened():
            pass
        async with run.opened() as storage:
            with a_body(300) as (body, data):
                await put(run, storage, _KEY, body)
        await holds(run, _KEY, data)
        async with run.opened() as storage:
            await holds(run, _KEY, data)
            with a_body(200) as (body, data):
                await put(run, storage, _KEY, body)
            await holds(run, _KEY, data)

    @promise
    async def test_two_may_be_open_at_once(self, run: Run[StoragePeer]) -> None:
        """Instances share a storage: opening or closing one takes nothing from the puts of another."""
        async with run.opened() as first:
            with a_body(self.large_bytes, spooled=True) as (body, data):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(put, run, first, _KEY, body)
                    for _ in range(_OTHERS):
                        async with run.opened() as second:
                            with a_body(20) as (small, _):
                                await put(run, second, f"{_KEY}x", small)
            await holds(run, _KEY, data)
            await delete(run, first, f"{_KEY}x")
            await only(run, _KEY)

    @promise
    async def test_a_stop_in_mid_put_closes_it(self, run: Run[StoragePeer]) -> None:
        """All that has the storage open is cancelled: it ends promptly, without torn files or leftovers."""

        async def work(body: Body) -> None:
            async with run.opened() as storage, trio.open_nursery() as nursery:
                nursery.start_soon(storage.put, _KEY, body)

        candidates: list[bytes | None] = [None]
        for after_s in _CANCELS_S:
            with a_body(self.large_bytes, spooled=True) as (body, data):
                candidates.append(data)
                await run.cancelled(partial(work, body), after_s=after_s, what="the open storage")
                found = await run.peer.read(_KEY)
                assert found in candidates, f"a stop has left {short(found)}"
        async with run.opened() as storage:
            with a_body(20) as (small, _):
                await put(run, storage, _KEY, small)
            await only(run, _KEY)

    @promise
    async def test_it_leaves_nothing_behind(self, run: Run[StoragePeer]) -> None:
        """When it is closed no task, thread, socket or file of its own is left, cancelled puts or not."""
        await self._work(run)  # what is made once for the whole process is no leak
        before = resources()
        await self._work(run)
        await run.nothing_left(before)

    async def _work(self, run: Run[StoragePeer]) -> None:
        async with run.opened() as storage:
            for after_s in (0.0, 0.02, run.times.answer_s):
                with a_body(self.large_bytes, spooled=True) as (body, _):
                    await run.cancelled(partial(storage.put, _KEY, body), after_s=after_s, what="a put")
            await storage.local(_KEY)
            await delete(run, storage, _KEY)
