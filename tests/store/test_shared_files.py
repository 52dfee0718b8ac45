"""Files under keys with `{sha256}`: counted over all jobs that have them, whoever dies."""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import pytest
import trio
from pydantic import SecretStr

from downloader.config import RedisSettings, Settings
from downloader.errors import StorageError, StorageRefused, StoreUnavailable
from downloader.fetch import CompleteBody
from downloader.ids import new_id
from downloader.model import CallbackOutcome, FileFacts, JobSpec, Kind, Outcome, Verdict
from downloader.scheduler.reaper import DELETION_S, HOLD_S
from downloader.service.instance import Files
from downloader.service.shared_files import BEGIN_S, MARK_S, SharedFiles
from downloader.store import (
    CLUSTER_SHARDS,
    CallbackPlan,
    Changed,
    JobStore,
    Keys,
    Sharing,
    asyncio_loop,
    open_store,
)
from servers.jobs import closed, downloaded, leased, submitted
from servers.raw_store import RawStore

SHA256 = "ab" * 32
BODY = CompleteBody(size=3, sha256=SHA256, data=b"abc")
OK = Outcome(verdict=Verdict.SUCCEEDED, file=FileFacts(size=3, sha256=SHA256))
NO = Outcome(verdict=Verdict.FAILED, error="no")
KEY = "blobs/{sha256}"
NO_BUCKETS: dict[str, Any] = {"buckets": None, "clouds": None}
NO_CALLBACK = {"callback_type": "", "callback_dst": ""}


@dataclass
class Disk:
    """A storage that knows sizes."""

    sizes: dict[str, int] = field(default_factory=dict)
    refuses: bool = False

    async def size(self, key: str) -> int | None:
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise StorageRefused("not to be read")
        return self.sizes.get(key)

    async def delete(self, key: str) -> None:
        await trio.lowlevel.checkpoint()
        self.sizes.pop(key, None)


def shared(store: JobStore, disk: object, **more: Any) -> SharedFiles:
    return SharedFiles(store=store, storage=cast("Any", disk), **more)


def key_of(spec: JobSpec) -> str:
    return spec.storage_key(SHA256)


async def running(store: JobStore, **fields: Any) -> JobSpec:
    """A job whose download runs."""
    spec = await submitted(store, key=KEY, aggr_limit=99, **NO_CALLBACK, **fields)
    await leased(store)
    return spec


async def test_the_first_job_stores_and_the_last_one_deletes(store: JobStore, raw: RawStore) -> None:
    disk = Disk()
    files = shared(store, disk)
    first, second = await running(store), await running(store)
    assert await files.share(first, BODY)
    disk.sizes[key_of(first)] = 3
    assert await files.share(first, BODY) is False, "of an earlier attempt"
    assert await files.share(second, BODY) is False
    await files.delete(first, SHA256)
    assert disk.sizes
    await files.delete(first, SHA256)
    assert disk.sizes
    await files.delete(second, SHA256)
    assert not disk.sizes
    assert not raw.command("KEYS", f"{raw.keys.base(0)}sharers:*")
    assert not raw.command("KEYS", f"{raw.keys.base(0)}deleting:*")


@pytest.mark.parametrize(("size", "refuses"), [(3, False), (5, False), (3, True)])
async def test_a_file_that_was_there_before_is_never_deleted(
    store: JobStore, raw: RawStore, size: int, *, refuses: bool
) -> None:
    first, second = await running(store), await running(store)
    disk = Disk({key_of(first): size}, refuses)
    files = shared(store, disk)
    for spec in (first, second):
        assert await files.share(spec, BODY), "it may have other bytes"
    disk.sizes[key_of(first)] = 3
    for spec in (first, second):
        await files.delete(spec, SHA256)
    assert disk.sizes
    assert not raw.command("KEYS", f"{raw.keys.base(0)}sharers:*")


async def test_a_file_of_another_size_or_with_fail_is_stored_again(store: JobStore) -> None:
    disk = Disk()
    files = shared(store, disk)
    spec, cautious = await running(store), await running(store, key_exists="fail")
    assert await files.share(spec, BODY)
    disk.sizes[key_of(spec)] = 2
    assert await files.share(spec, BODY)
    disk.sizes[key_of(spec)] = 3
    assert await files.share(cautious, BODY)


async def test_without_sizes_nothing_is_counted(store: JobStore, raw: RawStore) -> None:
    assert await shared(store, object()).share(await running(store), BODY)
    assert not raw.command("KEYS", f"{raw.keys.base(0)}sharers:*")


async def test_a_job_that_is_over_is_not_counted(store: JobStore, raw: RawStore) -> None:
    spec = await running(store)
    await store.cancel(spec, None, 60)
    for lost in (False, True):
        if lost:
            raw.command("DEL", raw.key("task", "download", spec.id))
        with pytest.raises(StorageError, match="the job is over"):
            await shared(store, Disk()).share(spec, BODY)
    assert not raw.command("KEYS", f"{raw.keys.base(0)}sharers:*")
    assert not raw.command("EXISTS", raw.key("task", "download", spec.id))


async def test_a_job_shares_a_bounded_number_of_files(store: JobStore) -> None:
    spec = await running(store)
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(100)]
    for digest in (*digests, digests[0]):
        assert await store.share_file(spec.id, digest, digest) is Sharing.FOREIGN
    with pytest.raises(StorageRefused, match="too many different files"):
        await shared(store, Disk()).share(spec, BODY)


async def test_whoever_wants_a_file_that_is_being_deleted_stores_it_again(
    store: JobStore, raw: RawStore
) -> None:
    first, second = await running(store), await running(store)
    disk = Disk()
    files = shared(store, disk)
    await files.share(first, BODY)
    disk.sizes[key_of(first)] = 3
    unshare = partial(store.unshare_file, first.id, key_of(first))
    assert await unshare("one", MARK_S) is Sharing.DELETE
    assert await unshare("one", MARK_S) is Sharing.DELETE, "a repeated call"
    assert await unshare("two", MARK_S) is Sharing.WAIT
    assert await unshare("two", MARK_S, deleted=True) is Sharing.WAIT
    with pytest.raises(StorageError, match="another instance deletes the file"):
        await files.delete(first, SHA256)
    answers: list[Sharing] = []
    stores: list[bool] = []
    looked_twice = trio.Event()

    class Noted:
        async def share_file(self, *args: Any, **more: Any) -> Sharing:
            answers.append(await store.share_file(*args, **more))
            if len(answers) == 2:
                looked_twice.set()
            return answers[-1]

    async def want() -> None:
        stores.append(await shared(cast("Any", Noted()), disk).share(second, BODY))
        looked_twice.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(want)
        await looked_twice.wait()
        assert answers == [Sharing.WAIT] * 2
        disk.sizes.clear()
        assert await unshare("one", MARK_S, deleted=True) is Sharing.KEPT
    assert stores == [True]
    await files.delete(first, SHA256)
    assert raw.command("SMEMBERS", raw.key("sharers", _file_of(raw))) == {second.id}


def _file_of(raw: RawStore) -> str:
    [name] = raw.command("KEYS", f"{raw.keys.base(0)}sharers:*")
    return str(name).rpartition(":")[2]


async def test_a_deletion_that_would_begin_late_does_not(store: JobStore, raw: RawStore) -> None:
    """The machine was suspended after the store's answer, and by now the file may be another job's."""
    times = iter((0.0, BEGIN_S + 1))
    spec, disk = await running(store), Disk()
    files = shared(store, disk, clock=lambda: next(times))
    await files.share(spec, BODY)
    disk.sizes[key_of(spec)] = 3
    with pytest.raises(StorageError, match="too late"):
        await files.delete(spec, SHA256)
    assert disk.sizes
    left_ms = raw.command("PTTL", raw.key("deleting", _file_of(raw)))
    assert BEGIN_S < left_ms / 1000 <= MARK_S
    assert DELETION_S <= BEGIN_S
    assert MARK_S < HOLD_S, "the next reaper finds no mark of a dead one"


async def test_the_store_s_errors_are_the_storage_s() -> None:
    class Away:
        async def share_file(self, *_: object) -> Sharing:
            await trio.lowlevel.checkpoint()
            raise StoreUnavailable("no answer")

    spec = JobSpec(id="NSb4FOAs9fVaQw", aggr_id="a", aggr_limit=1, url="http://h/", key=KEY)
    with pytest.raises(StorageError, match="no answer"):
        await shared(cast("Any", Away()), Disk()).share(spec, BODY)


async def test_on_a_cluster_the_job_s_shard_knows_first() -> None:
    """So that the end of the job finds a file that it is counted for, whoever dies between the two."""
    calls: list[tuple[int, set[str]]] = []

    class Shards:
        keys = Keys(prefix="p", shards=CLUSTER_SHARDS)
        answer = "shared"

        async def run(self, _: str, shard: int, call: Mapping[str, Any], *, durable: bool) -> str:
            await trio.lowlevel.checkpoint()
            assert durable
            calls.append((shard, set(call)))
            return self.answer

    client: Any = Shards()
    store = JobStore(client)
    job_id = new_id(3, CLUSTER_SHARDS)
    assert await store.share_file(job_id, "key", SHA256) is Sharing.SHARED
    [of_job, of_file] = calls
    assert of_job == (3, {"id", "digest"})
    assert of_file == (of_file[0], {"id", "file", "ours"})
    assert of_file[0] != 3
    client.answer = "over"
    calls.clear()
    assert await store.share_file(job_id, "key", SHA256) is Sharing.OVER
    assert calls == [of_job]


# The way of the digest through the job's records


async def reaped(store: JobStore) -> Sequence[tuple[str, Sequence[str]]]:
    return [(job.spec.storage_key("x"), job.digests) for job in (await store.reap(9, 60)).jobs]


@pytest.mark.parametrize("end", ["a success", "a callback", "a failed callback", "a failure", "a cancel"])
async def test_whatever_ends_a_job_its_files_are_known(store: JobStore, end: str) -> None:
    spec = await submitted(store, key=KEY)
    lease = await leased(store)
    await store.share_file(spec.id, "one", SHA256)
    await store.share_file(spec.id, "two", "cd" * 32)
    plan = CallbackPlan(queue="http c", limit=4)
    if end == "a cancel":
        await store.cancel(spec, plan, 0)
        await store.settle("me", [downloaded(lease, OK, None, 0)])
    else:
        outcome = NO if end == "a failure" else OK
        await store.settle("me", [downloaded(lease, outcome, None if end == "a success" else plan, 0)])
    if end != "a success":
        verdict = Verdict.FAILED if end == "a failed callback" else Verdict.SUCCEEDED
        callback = await leased(store, kind=Kind.CALLBACK)
        delivery = CallbackOutcome(verdict=verdict, error="" if verdict is Verdict.SUCCEEDED else "no")
        await store.settle("me", [closed(callback, delivery, 0, 4)])
    assert await store.purge(spec.id) is Changed.DONE
    assert await reaped(store) == [("blobs/x", [SHA256, "cd" * 32])]
    await store.remove([spec.id])


async def test_a_failed_download_that_runs_again_keeps_its_files(store: JobStore) -> None:
    spec = await submitted(store, key=KEY, **NO_CALLBACK)
    for sha256, outcome in ((SHA256, NO), ("cd" * 32, OK)):
        lease = await leased(store)
        await store.share_file(spec.id, sha256, sha256)
        await store.settle("me", [downloaded(lease, outcome, None, 0)])
        if outcome is NO:
            assert await store.retry(spec.id, download=True, limit=4) is Changed.DONE
    assert await reaped(store) == [("blobs/x", [SHA256, "cd" * 32])]


async def test_an_encrypted_key_is_read_by_whoever_has_the_key(redis_settings: RedisSettings) -> None:
    """Others leave the job alone, as they cannot know where its file is."""
    secret = SecretStr(base64.b64encode(bytes(32)).decode())
    sealing = redis_settings.model_copy(update={"encryption_keys": [secret]})
    async with asyncio_loop(), open_store(sealing) as store, open_store(redis_settings) as without:
        spec = await submitted(store, key=KEY, **NO_CALLBACK)
        lease = await leased(store)
        await store.share_file(spec.id, "one", SHA256)
        await store.settle("me", [downloaded(lease, OK, None, 0)])
        [job] = (await without.reap(9, 0)).jobs
        files = Files(settings=Settings(), storage=cast("Any", Disk()), **NO_BUCKETS)
        with pytest.raises(StorageError, match="encrypted"):
            await files.delete(job.spec, job.digests)
        assert await reaped(store) == [("blobs/x", [SHA256])]


# Any interleaving of jobs with equal files, and of processes that die


class Killed(Exception):
    """The process has died."""


@dataclass
class Turns:
    """Gives tasks their turns one by one, in an order drawn from a seed, kills some, and lets time pass."""

    rng: random.Random
    waiting: list[trio.Event] = field(default_factory=list)
    busy: int = 0
    now: float = 0.0

    async def turn(self, *, may_die: bool = True) -> None:
        event = trio.Event()
        self.waiting.append(event)
        self.busy -= 1
        await event.wait()
        if may_die and self.rng.random() < 0.12:
            raise Killed

    async def play(self, pass_time: Callable[[], None], check: Callable[[], None]) -> None:
        """Until all tasks have ended."""
        while self.busy or self.waiting:
            await trio.lowlevel.checkpoint()
            if self.busy or not self.waiting:
                continue
            check()
            if self.rng.random() < 0.1:
                self.now += MARK_S
                pass_time()
            self.busy += 1
            # Often the same one again, so that others meet it in the middle of what it does.
            place = -1 if self.rng.random() < 0.6 else self.rng.randrange(len(self.waiting))
            self.waiting.pop(place).set()


@dataclass
class Process:
    """The store and the storage as one process has them: before and after each call others have turns."""

    store: JobStore
    disk: Disk
    turns: Turns

    async def share_file(self, *args: Any, **more: Any) -> Sharing:
        answer = await self._ask(self.store.share_file, *args, **more)
        if answer is Sharing.WAIT:  # as if it had waited too long
            raise StoreUnavailable("no answer")
        return answer

    async def unshare_file(self, *args: Any, **more: Any) -> Sharing:
        answer = await self._ask(self.store.unshare_file, *args, **more)
        if answer is Sharing.DELETE:
            for _ in range(self.turns.rng.randrange(20)):
                await self.turns.turn(may_die=False)
        return answer

    async def _ask(self, call: Callable[..., Awaitable[Sharing]], *args: Any, **more: Any) -> Sharing:
        await self.turns.turn()
        answer = await call(*args, **more)
        await self.turns.turn()
        return answer

    async def size(self, key: str) -> int | None:
        await self.turns.turn()
        return self.disk.sizes.get(key)

    async def delete(self, key: str) -> None:
        # Without a turn before: a deletion that has begun ends before its mark.
        self.disk.sizes.pop(key, None)
        await self.turns.turn()


@dataclass
class Life:
    """A job from its first attempt to its deletion; another process tries again when one has died."""

    process: Process
    spec: JobSpec
    is_kept: bool = False
    """Whether the job has succeeded and nobody deletes it."""

    async def run(self) -> None:
        turns = self.process.turns
        files = SharedFiles(
            store=cast("Any", self.process), storage=cast("Any", self.process), clock=lambda: turns.now
        )
        await self._idle(60)
        await self._insist(partial(self._store, files))
        self.is_kept = True
        await self._idle(10)
        self.is_kept = False
        await self._insist(partial(files.delete, self.spec, SHA256))
        turns.busy -= 1

    async def _idle(self, most: int) -> None:
        for _ in range(self.process.turns.rng.randint(1, most)):
            await self.process.turns.turn(may_die=False)

    async def _insist(self, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            with suppress(Killed, StorageError):
                await work()
                return
            await self.process.turns.turn(may_die=False)

    async def _store(self, files: SharedFiles) -> None:
        if await files.share(self.spec, BODY):
            await self.process.turns.turn()
            self.process.disk.sizes[key_of(self.spec)] = 3
        await self.process.turns.turn()


@pytest.mark.slow
@pytest.mark.row("F39")
@pytest.mark.parametrize("seed", range(6))
async def test_a_file_is_there_if_and_only_if_a_kept_job_has_it(
    store: JobStore, raw: RawStore, seed: int
) -> None:
    rng = random.Random(seed)
    for is_foreign in (False, False, True) * 4:
        disk, turns = Disk(), Turns(rng)
        key = f"{seed} {is_foreign} {rng.random()}/{{sha256}}"
        lives = []
        for _ in range(rng.randint(2, 4)):
            spec = await submitted(store, key=key, aggr_limit=99, **NO_CALLBACK)
            lives.append(Life(Process(store, disk, turns), spec))
        await store.lease(Kind.DOWNLOAD, "me", 9, 600)
        if is_foreign:
            disk.sizes[key_of(lives[0].spec)] = 3

        def pass_time() -> None:
            if names := raw.command("KEYS", f"{raw.keys.base(0)}deleting:*"):
                raw.command("DEL", *names)

        def check(lives: Sequence[Life] = lives, disk: Disk = disk, *, is_foreign: bool = is_foreign) -> None:
            assert disk.sizes or not (is_foreign or any(life.is_kept for life in lives))

        turns.busy = len(lives)
        async with trio.open_nursery() as nursery:
            for life in lives:
                nursery.start_soon(life.run)
            await turns.play(pass_time, check)
        assert bool(disk.sizes) is is_foreign
        assert not raw.command("KEYS", f"{raw.keys.base(0)}sharers:*")
        assert not raw.command("KEYS", f"{raw.keys.base(0)}deleting:*")
