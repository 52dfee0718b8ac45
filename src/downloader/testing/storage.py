"""The contract of storages, as tests."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial

import trio

from downloader.net import Url, UrlError
from downloader.storage import Body, KeyTaken, Storage, StorageError, StorageHost
from downloader.testing.contract import Contract, Run, check_line, promise
from downloader.testing.disk_calls import DiskCalls
from downloader.testing.storage_peer import (
    StoragePeer,
    a_body,
    delete,
    fails,
    holds,
    only,
    put,
    short,
    stored,
)
from downloader.testing.tcp_proxy import Fault

_MANY = 40
_RIVALS = 8
_OTHERS = 3
_CANCELS_S = (0.0, 0.002, 0.02, 0.1)
"""When a put is cancelled: before the first step, and while writing."""
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
"""Keys with unusual subpaths. The last three differ, but a wrong encoding makes them equal."""
_URL = re.compile(r"[!-~]+")
"""Visible ASCII (RFC 3986, 2)."""


class StorageContract(Contract[StoragePeer]):
    """The suite; a subclass defines `peer`, see `NotifierContract`."""

    large_bytes: int = 6 * 1024 * 1024 + 17
    """Size of a large file; more than one part, for a storage that uploads in parts."""

    def lend(self) -> AbstractAsyncContextManager[StorageHost]:
        """A host like the service's."""
        return nullcontext(StorageHost())

    @promise
    async def test_a_stored_file_is_complete(self, run: Run[StoragePeer]) -> None:
        """When `put` returns, all bytes are stored, from memory or from a spool file."""
        async with run.opened() as storage:
            for number, size in enumerate((1, 70_000, 0)):
                await stored(run, storage, f"{_KEY}{number}", size)
            for number, size in enumerate((1, self.large_bytes, 0)):
                await stored(run, storage, f"spooled/{_KEY}{number}", size, spooled=True)

    @promise
    async def test_a_file_replaces_an_older_one(self, run: Run[StoragePeer]) -> None:
        """A second put of a key replaces the whole file."""
        async with run.opened() as storage:
            for size, spooled in ((1000, False), (2000, False), (self.large_bytes, True), (10, False)):
                await stored(run, storage, _KEY, size, spooled=spooled)
            await only(run, _KEY)

    @promise
    async def test_a_deleted_file_is_gone(self, run: Run[StoragePeer]) -> None:
        """`delete` deletes this file and no other; deleting a missing file is no error."""
        async with run.opened() as storage:
            await delete(run, storage, _KEY)
            await stored(run, storage, _KEY, 100)
            data = await stored(run, storage, f"{_KEY}x", 100)
            await delete(run, storage, _KEY)
            await delete(run, storage, _KEY)
            assert await run.peer.read(_KEY) is None, "the deleted file is there"
            assert await storage.local(_KEY) is None, "local() finds the deleted file"
            await holds(run, f"{_KEY}x", data)
            await only(run, f"{_KEY}x")

    @promise
    async def test_delete_raises_storage_errors_only(self, run: Run[StoragePeer]) -> None:
        """`delete` of a key that cannot be a file deletes nothing, and raises `StorageError` if anything."""
        async with run.opened() as storage:
            data = await stored(run, storage, _KEY, 100)
            for key in (_KEY.partition("/")[0], f"{_KEY}/x", "x" * 300):
                with suppress(StorageError):
                    await delete(run, storage, key)
            await holds(run, _KEY, data)

    @promise
    async def test_files_are_opened_in_threads(self, run: Run[StoragePeer]) -> None:
        """`put`, `local` and `delete` use the disk in threads only, as a slow disk must not stop the loop."""
        async with run.opened() as storage:
            for spooled in (False, True):
                with a_body(5000, spooled=spooled) as (body, _), DiskCalls(body.path) as calls:
                    await put(run, storage, _KEY, body)
                    await storage.local(_KEY)
                    await delete(run, storage, _KEY)
                assert not calls.on_loop, (
                    f"it blocks the loop: {calls.on_loop[0]} is called outside of threads"
                )

    @promise
    async def test_a_local_file_is_on_the_disk(self, run: Run[StoragePeer]) -> None:
        """A file that `local` finds survives a power failure: `put` syncs the file and its folder."""
        async with run.opened() as storage:
            for size, spooled in ((5000, False), (self.large_bytes, True)):
                with a_body(size, spooled=spooled) as (body, _), DiskCalls(body.path) as calls:
                    await put(run, storage, _KEY, body)
                local = await storage.local(_KEY)
                if local is None or not run.peer.syncs:
                    return
                # A spool file is synced before the storage gets it, and may have been moved.
                wanted = [local.path.parent] if spooled else [local.path, local.path.parent]
                for path in wanted:
                    status = await trio.Path(path).stat()
                    synced = (status.st_dev, status.st_ino) in calls.synced
                    assert synced, f"put() returned without an fsync of {path}: a power failure may lose it"

    @promise
    async def test_a_job_that_is_anothers_publishes_nothing(self, run: Run[StoragePeer]) -> None:
        """When `still_ours` returns false, `put` raises `StorageError` and stores nothing."""
        async with run.opened() as storage:
            await self._lost(run, storage, None)
            await self._lost(run, storage, await stored(run, storage, _KEY, 100))

    async def _lost(self, run: Run[StoragePeer], storage: Storage, before: bytes | None) -> None:
        for size, spooled in ((50, False), (50, True), (self.large_bytes, True)):
            with a_body(size, spooled=spooled, still_ours=lambda: False) as (body, _):
                await fails(run, storage, _KEY, body, "of a job that another instance has taken")
            assert await run.peer.read(_KEY) == before, (
                "a put of a job that another instance has taken has changed the file"
            )
        await only(run, *([_KEY] if before is not None else []))

    @promise
    async def test_it_asks_whose_the_job_is(self, run: Run[StoragePeer]) -> None:
        """`put` calls `still_ours` before publishing."""
        async with run.opened() as storage:
            for size, spooled in ((50, False), (50, True), (self.large_bytes, True)):
                calls: list[bool] = []
                with a_body(size, spooled=spooled, still_ours=lambda: not calls.append(True)) as (body, _):  # type: ignore[func-returns-value]  # noqa: B023 - called within this turn
                    await put(run, storage, _KEY, body)
                assert calls, "the file was published without a call of still_ours()"

    @promise
    async def test_a_cancel_leaves_the_old_file_or_the_new(self, run: Run[StoragePeer]) -> None:
        """A cancelled put returns promptly and leaves the old or the new file; the next put succeeds."""
        async with run.opened() as storage:
            old = await stored(run, storage, _KEY, 300)
            for size, spooled in ((70_000, False), (self.large_bytes, True)):
                for after_s in _CANCELS_S:
                    with a_body(size, spooled=spooled) as (body, new):
                        call = partial(storage.put, _KEY, body)
                        await run.cancelled(call, after_s=after_s, what="a put")
                        content = await run.peer.read(_KEY)
                        assert content in (old, new), f"a cancelled put has left {short(content)}"
                    old = content or b""
            await stored(run, storage, _KEY, 99)
            await only(run, _KEY)

    @promise
    async def test_many_are_stored_at_once(self, run: Run[StoragePeer]) -> None:
        """`put` is called from many tasks: each file is complete and under the right key."""
        files: dict[str, bytes] = {}

        async def one(storage: Storage, number: int) -> None:
            large, key = number % 20 == 0, f"{number % 7}/{number}"
            size = self.large_bytes if large else 1000 + number
            files[key] = await stored(run, storage, key, size, spooled=large)

        async with run.opened() as storage:
            async with trio.open_nursery() as nursery:
                for number in range(_MANY):
                    nursery.start_soon(one, storage, number)
            for key, data in files.items():
                await holds(run, key, data)
            await only(run, *files)

    @promise
    async def test_rivals_leave_one_complete_file(self, run: Run[StoragePeer]) -> None:
        """Concurrent puts of one key leave one of the files, complete."""
        candidates: list[bytes] = []

        async def put_rival(storage: Storage, number: int) -> None:
            large = number % 2 == 0
            with a_body(self.large_bytes if large else 500, spooled=large) as (body, data):
                candidates.append(data)
                await put(run, storage, _KEY, body)

        async with run.opened() as storage:
            async with trio.open_nursery() as nursery:
                for number in range(_RIVALS):
                    nursery.start_soon(put_rival, storage, number)
            content = await run.peer.read(_KEY)
            assert content in candidates, f"the file is none of those that were put: {short(content)}"
            await only(run, _KEY)

    @promise
    async def test_a_file_that_is_there_stays_if_asked(self, run: Run[StoragePeer]) -> None:
        """`keep` and `fail` replace no file, and one of several rivals stores (if `knows_key_exists`)."""
        async with run.opened() as storage:
            if not getattr(storage, "knows_key_exists", False):
                return
            for spooled in (False, True):
                key = f"{_KEY}{spooled}"
                size = self.large_bytes if spooled else 500
                data = await self._one_of_rivals(run, storage, key, size)
                with a_body(size, spooled=spooled, key_exists="keep") as (body, _):
                    await put(run, storage, key, body)
                await holds(run, key, data)

    async def _one_of_rivals(self, run: Run[StoragePeer], storage: Storage, key: str, size: int) -> bytes:
        """Put several bodies with `fail` at once, each twice; returns the one that is stored."""
        winners: list[bytes] = []
        at_once = trio.CapacityLimiter(_OTHERS if run.peer.conditional else 1)

        async def put_twice() -> None:
            large = size == self.large_bytes
            async with at_once:
                with a_body(size, spooled=large, key_exists="fail") as (body, data):
                    for _ in range(2):  # the second time as another attempt of the job
                        try:
                            await put(run, storage, key, body)
                        except KeyTaken as error:
                            check_line(str(error), run.peer.secrets, "the KeyTaken")
                        else:
                            winners.append(data)

        async with trio.open_nursery() as nursery:
            for _ in range(_OTHERS):
                nursery.start_soon(put_twice)
        assert len(winners) == 2, f"{len(winners)} puts with fail have succeeded, not the two of one body"  # noqa: PLR2004
        await holds(run, key, winners[0])
        return winners[0]

    @promise
    async def test_keys_are_taken_as_they_are(self, run: Run[StoragePeer]) -> None:
        """Keys with spaces, punctuation and any script: each is a separate file."""
        async with run.opened() as storage:
            files = {key: await stored(run, storage, key, 200) for key in _ODD_KEYS}
            for key, data in files.items():
                await holds(run, key, data)
            await only(run, *files)
            for key in files:
                await delete(run, storage, key)
            await only(run)

    @promise
    async def test_local_is_the_stored_file(self, run: Run[StoragePeer]) -> None:
        """`local` returns the file with the size, or always `None`; `None` for a missing file."""
        async with run.opened() as storage:
            assert await storage.local(_KEY) is None, "local() finds what was never stored"
            for size, spooled in ((5000, False), (self.large_bytes, True)):
                data = await stored(run, storage, _KEY, size, spooled=spooled)
                local = await storage.local(_KEY)
                if local is None:
                    continue
                assert local.size == len(data), (
                    f"local() says {local.size} bytes, and {len(data)} were stored"
                )
                assert await trio.Path(local.path).read_bytes() == data, "local() returns another file"

    @promise
    async def test_the_size_is_that_of_the_file(self, run: Run[StoragePeer]) -> None:
        """The optional method `size` returns the length of the stored file; `None` for a missing file."""
        async with run.opened() as storage:
            size = getattr(storage, "size", None)
            if size is None:
                return
            assert await size(_KEY) is None, "size() finds what was never stored"
            for length, spooled in ((0, False), (5000, False), (self.large_bytes, True)):
                await stored(run, storage, _KEY, length, spooled=spooled)
                found = await size(_KEY)
                assert found == length, f"size() says {found} bytes, and {length} were stored"
            await delete(run, storage, _KEY)
            assert await size(_KEY) is None, "size() finds the deleted file"

    @promise
    async def test_a_file_can_be_found(self, run: Run[StoragePeer]) -> None:
        """`url` returns an absolute URL without credentials for each key; or `""` if `local` has the file."""
        urls: set[str] = set()
        async with run.opened() as storage:
            for key in _ODD_KEYS:
                await stored(run, storage, key, 10)
                url = storage.url(key)
                if not url:
                    assert await storage.local(key) is not None, "neither url() nor local() finds the file"
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
        """While every connection fails `put` raises `StorageError` and keeps the old file."""
        await self._outage(run, Fault.AWAY)

    @promise
    async def test_while_it_is_silent_nothing_succeeds(self, run: Run[StoragePeer]) -> None:
        """A server that accepts the connection and answers nothing: `StorageError`."""
        await self._outage(run, Fault.SILENT)

    @promise
    async def test_a_lost_answer_is_no_success(self, run: Run[StoragePeer]) -> None:
        """The connection is closed before the response: `StorageError`."""
        await self._outage(run, Fault.CUT)

    async def _outage(self, run: Run[StoragePeer], fault: Fault) -> None:
        if fault not in run.peer.faults:
            return
        async with run.opened(hasty=True) as storage:
            with a_body(300) as (body, old):
                for key in (_KEY, f"{_KEY}x"):
                    await self._retried(run, partial(put, run, storage, key, body))
            tried = [old]
            async with run.peer.broken(fault):
                for size, spooled in ((400, False), (self.large_bytes, True)):
                    with a_body(size, spooled=spooled) as (body, data):
                        await fails(run, storage, _KEY, body, f"while the storage is {fault}")
                    tried.append(data)
                try:
                    await delete(run, storage, f"{_KEY}x")
                    deleted = True
                except StorageError as error:
                    check_line(str(error), run.peer.secrets, "the StorageError")
                    deleted = False
            content = await run.peer.read(_KEY)
            # The server may have carried out a request whose answer was lost.
            allowed = tried if fault is Fault.CUT else [old]
            assert content in allowed, f"failed puts have left {short(content)}"
            if deleted:
                gone = await run.peer.read(f"{_KEY}x") is None
                assert gone, "delete() reported success while the storage was broken, and the file is there"
            await self._recovers(run, storage)

    async def _recovers(self, run: Run[StoragePeer], storage: Storage) -> None:
        with a_body(self.large_bytes, spooled=True) as (body, data), a_body(20) as (small, _):
            await self._retried(run, partial(put, run, storage, f"{_KEY}y", small))
            await self._retried(run, partial(put, run, storage, _KEY, body))
        await holds(run, _KEY, data)
        for key in (f"{_KEY}x", f"{_KEY}y"):
            await self._retried(run, partial(delete, run, storage, key))
        await only(run, _KEY)

    async def _retried(self, run: Run[StoragePeer], call: Callable[[], Awaitable[None]]) -> None:
        """Call until no `StorageError` is raised: a busy machine may exceed the short timeouts."""
        deadline = time.monotonic() + run.times.recover_s
        while True:
            try:
                return await call()
            except StorageError:
                if time.monotonic() > deadline:
                    raise
            await trio.sleep(0.05)

    @promise
    async def test_files_outlive_the_storage(self, run: Run[StoragePeer]) -> None:
        """Files are still there when the storage is closed and opened again, and can be replaced."""
        async with run.opened():
            pass
        async with run.opened() as storage:
            data = await stored(run, storage, _KEY, 300)
        await holds(run, _KEY, data)
        async with run.opened() as storage:
            await holds(run, _KEY, data)
            await stored(run, storage, _KEY, 200)

    @promise
    async def test_two_may_be_open_at_once(self, run: Run[StoragePeer]) -> None:
        """Instances share a storage: opening and closing one does not disturb the puts of another."""
        async with run.opened() as first:
            with a_body(self.large_bytes, spooled=True) as (body, data):
                over = trio.Event()

                async def store_first() -> None:
                    await put(run, first, _KEY, body)
                    over.set()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store_first)
                    opened = 0
                    while opened < _OTHERS or not over.is_set():
                        opened += 1
                        async with run.opened() as second:
                            await stored(run, second, f"{_KEY}x", 20)
                        await trio.lowlevel.checkpoint()  # the first has its turn, whatever the plugin does
            await holds(run, _KEY, data)
            await delete(run, first, f"{_KEY}x")
            await only(run, _KEY)

    @promise
    async def test_a_stop_in_mid_put_closes_it(self, run: Run[StoragePeer]) -> None:
        """A storage whose opening task is cancelled ends promptly, without partial files."""

        async def work(body: Body) -> None:
            async with run.opened() as storage, trio.open_nursery() as nursery:
                nursery.start_soon(storage.put, _KEY, body)

        candidates: list[bytes | None] = [None]
        for after_s in _CANCELS_S:
            with a_body(self.large_bytes, spooled=True) as (body, data):
                candidates.append(data)
                await run.cancelled(partial(work, body), after_s=after_s, what="the open storage")
                content = await run.peer.read(_KEY)
                assert content in candidates, f"a stop has left {short(content)}"
        async with run.opened() as storage:
            await stored(run, storage, _KEY, 20)
            await only(run, _KEY)

    async def _work(self, run: Run[StoragePeer]) -> None:
        async with run.opened() as storage:
            for after_s in (0.0, 0.02, run.times.answer_s):
                with a_body(self.large_bytes, spooled=True) as (body, _):
                    await run.cancelled(partial(storage.put, _KEY, body), after_s=after_s, what="a put")
            await storage.local(_KEY)
            await delete(run, storage, _KEY)
