"""What becomes runnable wakes one instance of a fleet; one that does not come delays a job by two seconds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from downloader.config import RedisSettings
from downloader.model import CallbackOutcome, Kind, Lease, Outcome, Verdict
from downloader.scheduler import Stop, Wake, Work, run_work
from downloader.store import (
    CLUSTER_SHARDS,
    LOOK_S,
    CallbackPlan,
    JobStore,
    LeaseRequests,
    Settlement,
    Shares,
    Submission,
    asyncio_loop,
    open_store,
)
from servers.jobs import closed, downloaded, leased, spec_for, submitted, tried_again
from servers.raw_store import RawStore
from servers.store_clock import StoreClock
from servers.valkey_groups import open_cluster

DOWNLOAD, CALLBACK = Kind.DOWNLOAD, Kind.CALLBACK
OK = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
DELIVERED = CallbackOutcome(verdict=Verdict.SUCCEEDED)
RETRY = Outcome(verdict=Verdict.RETRY, error="e")
LATE_S = 2.0
"""How much later a job starts at the most if the instance that was woken is frozen."""
SOON_S = 1.0
"""Less than any interval at which somebody looks; without a wake-up nothing happens so soon."""


async def work_a_little(_: Lease) -> None:
    await trio.sleep(0.01)


async def work_for_ever(_: Lease) -> None:
    await trio.sleep_forever()


@dataclass
class Instance:
    """An instance of a fleet: its scheduler runs in this process."""

    name: str
    opened: AbstractAsyncContextManager[JobStore]
    work: Callable[[Lease], Awaitable[None]]
    concurrency: int = 256
    types: Collection[str] | None = None
    """Types of callbacks that it can deliver; `None`: it downloads."""
    calls: Counter[str] = field(default_factory=Counter)
    begun: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    wake: Wake = field(default_factory=Wake)
    stop: Stop = field(default_factory=Stop)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async def work(lease: Lease, _: object) -> Settlement:
            self.begun.append(lease.id)
            await self.work(lease)
            if lease.kind is CALLBACK:
                return closed(lease, DELIVERED, 60, 9)
            return Settlement.of(lease, OK, callback=None, keep_s=60)

        kind = DOWNLOAD if self.types is None else CALLBACK
        described = Work(
            kind=kind,
            concurrency=self.concurrency,
            types=self.types,
            lease_s=30,
            longest_s=lambda _: 60.0,
            work=work,
            on_end=lambda *_: None,
        )
        async with self.opened as store, trio.open_nursery() as nursery:
            listen = partial(store.listen, owner=self.name, cancelled=self.cancelled.append)
            await nursery.start(listen, {kind: self.wake.set})
            run = partial(run_work, owner=self.name, wake=self.wake, stop=self.stop)
            await nursery.start(run, store, described)
            task_status.started()


def _count(calls: Counter[str], name: str, _: float) -> None:
    calls[name] += 1


@dataclass
class Fleet:
    """Instances on one store."""

    settings: RedisSettings
    raw: RawStore
    nursery: trio.Nursery
    shards: int = 1
    instances: list[Instance] = field(default_factory=list)

    async def add(
        self,
        count: int,
        work: Callable[[Lease], Awaitable[None]] = work_a_little,
        concurrency: int = 256,
        types: Collection[str] | None = None,
    ) -> None:
        """Start instances, and wait until they are idle."""

        for _ in range(count):
            name, calls = f"i{len(self.instances)}", Counter[str]()
            opened = open_store(self.settings, partial(_count, calls))
            self.instances.append(Instance(name, opened, work, concurrency, types, calls))
            await self.nursery.start(self.instances[-1].run)
        names = {instance.name for instance in self.instances}
        await self.until(lambda: names <= set(self.idle()))

    def start_counting(self) -> None:
        for instance in self.instances:
            instance.calls.clear()

    def lease_calls(self) -> int:
        return sum(instance.calls["lease"] for instance in self.instances)

    def idle(self) -> list[str]:
        """Names of the instances that all shards have noted as idle, the last to have looked at the end."""
        keys = self.raw.command("KEYS", f"{self.settings.key_prefix}:*:idle:*")
        noted = Counter(name for key in keys for name in self.raw.command("ZRANGE", key, 0, -1))
        return [name for name, shards in noted.items() if shards == self.shards]

    @property
    def begun(self) -> list[str]:
        return [job_id for instance in self.instances for job_id in instance.begun]

    @staticmethod
    async def until(met: Callable[[], bool], seconds: float = 20) -> float:
        """Wait until this is so; returns how long it took."""
        began = trio.current_time()
        with trio.fail_after(seconds):
            while not met():  # noqa: ASYNC110  # what is waited for is in a server or in other tasks
                await trio.sleep(0.01)
        return trio.current_time() - began

    async def all_begun(self, count: int, seconds: float = 20) -> float:
        return await self.until(lambda: len(self.begun) == count, seconds)


@pytest.fixture
async def fleet(redis_settings: RedisSettings, raw: RawStore, store: JobStore) -> AsyncIterator[Fleet]:
    """A fleet without instances, in the asyncio loop of `store`; they end with the test."""
    async with trio.open_nursery() as instances:
        yield Fleet(redis_settings, raw, instances)
        instances.cancel_scope.cancel()


@pytest.fixture
def node() -> Iterator[RedisSettings]:
    with open_cluster(primaries=1) as [node]:
        yield RedisSettings(url=f"redis://127.0.0.1:{node.port}", cluster=True)


@pytest.fixture
async def cluster_fleet(node: RedisSettings) -> AsyncIterator[Fleet]:
    """A fleet without instances on a Cluster of one node."""
    with closing(RawStore(node)) as raw:
        async with asyncio_loop(), trio.open_nursery() as instances:
            yield Fleet(node, raw, instances, CLUSTER_SHARDS)
            instances.cancel_scope.cancel()


async def look(store: JobStore, name: str, *, shares: Shares | None = None) -> float | None:
    """An instance asks for work, finds none and is idle; returns in how many seconds it looks again."""
    batch = await store.lease(DOWNLOAD, name, 1, 30, room=9, shares=shares or Shares())
    assert not batch.leases
    await trio.sleep(0.002)  # the order of those that look in the same millisecond is not defined
    return batch.look_s


class Ears:
    """What instances are told, by name: in how many seconds they are to look."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, float]] = []

    async def listen(self, nursery: trio.Nursery, store: JobStore, *names: str) -> None:
        for name in names:
            self.heard.clear()
            await nursery.start(partial(store.listen, owner=name), {DOWNLOAD: partial(self._note, name)})
            subscriptions = 2 if name else 1
            await Fleet.until(lambda: len(self.heard) == subscriptions)  # noqa: B023  # called at once
            self.heard.clear()

    def _note(self, name: str, seconds: float, _: int) -> None:
        self.heard.append((name, seconds))

    async def woken(self, store: JobStore, count: int = 1) -> list[str]:
        """Who was told to look at once, after this many messages."""
        await Fleet.until(lambda: len(self.heard) >= count)
        await store.ping()
        await trio.sleep(0.05)
        return [name for name, seconds in self.heard if seconds == 0]


# how many ask


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 20])
async def test_a_job_makes_two_lease_calls_at_the_most(fleet: Fleet, store: JobStore, count: int) -> None:
    """Jobs that come alone, then jobs of an aggregation with a rate, for which one instance waits."""
    await fleet.add(count)
    alone, paced, longest_s = 20, 12, 0.0
    fleet.start_counting()
    for number in range(alone):
        await submitted(store, f"g{number}")
        longest_s = max(longest_s, await fleet.all_begun(number + 1))
    assert longest_s < SOON_S, "no job has waited for a look"
    assert sum(bool(instance.begun) for instance in fleet.instances) > count // 2, "they take turns"
    await store.submit(
        [Submission(spec=spec_for(store, aggr_limit=100, aggr_rate=10.0)) for _ in range(paced)]
    )
    assert await fleet.all_begun(alone + paced) == pytest.approx((paced - 1) / 10, abs=0.5), "the rate holds"
    await trio.sleep(LATE_S)
    # One of each job, one of the watcher in 1.5 s, and two of the fleet in `LOOK_S`.
    assert fleet.lease_calls() <= (1.1 if count == 1 else 2) * (alone + paced)


@pytest.mark.slow
async def test_a_callback_makes_two_lease_calls_at_the_most(fleet: Fleet, store: JobStore) -> None:
    """Also if the notifiers can deliver different types."""
    for types in (["http"], ["http", "kafka"]):
        await fleet.add(10, types=types)
    jobs, longest_s = 20, 0.0
    fleet.start_counting()
    for number in range(jobs):
        await submitted(store)
        plan = CallbackPlan(queue=f"{'http' if number % 2 else 'kafka'} {number}", limit=9)
        await store.settle("me", [downloaded(await leased(store), OK, plan, 60)])
        longest_s = max(longest_s, await fleet.all_begun(number + 1))
    assert longest_s < SOON_S, "no job has waited for a look"
    await trio.sleep(LATE_S)
    assert fleet.lease_calls() <= 2 * jobs


@pytest.mark.slow
async def test_a_job_asks_few_shards_of_a_cluster(cluster_fleet: Fleet) -> None:
    """With a rate or without; and two instances look at each shard for the whole fleet."""
    fleet = cluster_fleet
    await fleet.add(20)
    alone, paced, longest_s = 20, 12, 0.0
    fleet.start_counting()
    began = trio.current_time()
    async with open_store(fleet.settings) as store:
        for number in range(alone):
            await submitted(store, f"g{number}")
            longest_s = max(longest_s, await fleet.all_begun(number + 1))
        assert longest_s < LATE_S, "no job has waited for a look"
        specs = [spec_for(store, aggr_limit=100, aggr_rate=10.0) for _ in range(paced)]
        await store.submit([Submission(spec=spec) for spec in specs])
        await fleet.all_begun(alone + paced)
        await trio.sleep_until(max(began + LOOK_S, trio.current_time()) + LATE_S)
    looks = 2 * fleet.shards * math.ceil((trio.current_time() - began) / LOOK_S)
    # As S12 of `docs/performance.md` allows: a busy machine takes some wake-ups for unheard.
    assert fleet.lease_calls() <= 4 * (alone + paced) + looks


async def test_a_burst_spreads_over_the_fleet(fleet: Fleet, store: JobStore) -> None:
    await fleet.add(5, work_for_ever, concurrency=100)
    await store.submit([Submission(spec=spec_for(store, aggr_limit=1000)) for _ in range(450)])
    await fleet.all_begun(450, seconds=LATE_S)
    assert min(len(instance.begun) for instance in fleet.instances) >= 50


# who does not come


async def test_the_job_of_a_frozen_instance_is_taken_within_two_seconds(
    fleet: Fleet, store: JobStore, nursery: trio.Nursery
) -> None:
    ears = Ears()
    await ears.listen(nursery, store, "frozen")
    await look(store, "frozen")
    await fleet.add(2)
    await submitted(store)
    assert await fleet.all_begun(1) < LATE_S
    assert await ears.woken(store) == ["frozen"]


@pytest.mark.slow
async def test_a_lost_wake_up_is_found_although_the_instance_that_looks_is_frozen(
    fleet: Fleet, store: JobStore, raw: RawStore, nursery: trio.Nursery
) -> None:
    ears = Ears()
    await ears.listen(nursery, store, "frozen")
    assert await look(store, "frozen") == pytest.approx(LOOK_S, abs=0.5), "it looks for the fleet"
    await fleet.add(5)
    ears.heard.clear()
    raw.command("ACL", "SETUSER", "default", "-publish")
    try:
        await submitted(store)
    finally:
        raw.command("ACL", "SETUSER", "default", "+publish")
    assert await fleet.all_begun(1) < LOOK_S + LATE_S
    assert not ears.heard


async def test_two_of_an_idle_fleet_look_often_and_others_take_their_place(
    store: JobStore, raw: RawStore
) -> None:
    """Else an idle fleet would make more calls, the larger it is."""
    looks = [await look(store, name) for name in "abcdefgh"]
    often = [pytest.approx(LOOK_S, abs=0.5), pytest.approx(LOOK_S + 1.5, abs=0.5)]
    assert looks[:2] == often
    rare = [look_s or 0 for look_s in looks[2:]]
    assert min(rare) > 20
    assert max(rare) <= 30
    assert max(rare) - min(rare) > 2, "they drift apart"
    assert [await look(store, name) for name in "ab"] == often, "they keep their duty"
    assert raw.command("PTTL", raw.key("waiter", DOWNLOAD, "*")) > 1000 * LOOK_S, "until the other has looked"
    raw.command("DEL", raw.key("waiter", DOWNLOAD, "*"), raw.key("watcher", DOWNLOAD, "*"))
    assert [await look(store, name) for name in "cd"] == often


async def test_a_waiter_that_calls_often_does_not_note_its_duty_each_time(
    store: JobStore, clock: StoreClock, raw: RawStore
) -> None:
    """It keeps its former time, which is a little earlier, but never one behind a timer."""

    async def looks_at() -> int:
        assert await look(store, "a") is not None
        at_ms, _, name = raw.command("GET", raw.key("waiter", DOWNLOAD, "*")).partition(" ")
        assert name == "a"
        return int(at_ms)

    began_ms, duties = clock.now_ms, []
    for after_s in (0.0, 0.1, 0.1, 0.1):
        clock.move(after_s)
        duties.append(await looks_at() - began_ms)
    assert duties == [5000, 5000, 5000, 5300]
    await submitted(store)
    await store.settle("me", [tried_again(await leased(store), RETRY, 4)])
    assert await looks_at() == clock.now_ms + 4000


async def test_the_looks_at_several_shards_are_one_call(autojump_clock: MockClock) -> None:
    """Although their answers come one by one; a timer is exact."""
    requests, shards = LeaseRequests(), range(4)
    for shard, (look_ms, due_ms) in enumerate([(5000, -1), (5000, -1), (5000, 6000), (5002, 5002)]):
        requests.note(shard, look_ms, due_ms, idle=True)
        await trio.sleep(0.001)
    await trio.sleep(requests.look_s() or 0)
    assert requests.to_ask(shards, ()) == [0, 1, 2]
    assert requests.to_ask(shards, (1,)) == [0, 1, 2], "until they answer"
    for shard in range(3):
        requests.note(shard, -1, -1, idle=True)
    await trio.sleep(requests.look_s() or 0)
    assert requests.to_ask(shards, ()) == [3]


async def test_one_that_looks_for_the_fleet_has_a_watcher(
    store: JobStore, raw: RawStore, nursery: trio.Nursery, clock: StoreClock
) -> None:
    """Another one, if the first has not come."""
    ears = Ears()
    await ears.listen(nursery, store, "looks", "watches")
    for name in ("looks", "frozen", "watches"):
        await look(store, name)
    raw.command("DEL", raw.key("watcher", DOWNLOAD, "*"))  # it expires when the frozen one does not look
    ears.heard.clear()
    clock.move(0.25)
    await look(store, "looks")
    await Fleet.until(lambda: ears.heard == [("watches", LOOK_S + 1.5)])


@pytest.mark.parametrize("delay_s", [1.0, pytest.param(LOOK_S + 1, marks=pytest.mark.slow)])
async def test_the_timer_of_a_frozen_instance_is_late_by_two_seconds_at_most(
    fleet: Fleet, store: JobStore, nursery: trio.Nursery, delay_s: float
) -> None:
    ears = Ears()
    await ears.listen(nursery, store, "frozen")
    await submitted(store)
    [lease] = (await store.lease(DOWNLOAD, "frozen", 9, 30)).leases
    await look(store, "frozen")
    ears.heard.clear()
    await store.settle("frozen", [tried_again(lease, RETRY, delay_s)])
    if delay_s < LOOK_S:
        await Fleet.until(lambda: bool(ears.heard))
        assert ears.heard[0][1] == pytest.approx(delay_s, abs=0.1)
    await fleet.add(2)
    assert await fleet.all_begun(1) < delay_s + LATE_S


async def test_one_that_has_looked_for_a_timer_is_told_of_the_next(
    store: JobStore, nursery: trio.Nursery
) -> None:
    """Although its duty for the first timer has not run out yet."""
    ears = Ears()
    await ears.listen(nursery, store, "alone")
    await submitted(store)
    for delay_s in (0.05, 0.5):
        [lease] = (await store.lease(DOWNLOAD, "alone", 9, 30, room=9)).leases
        ears.heard.clear()
        await store.settle("alone", [tried_again(lease, RETRY, delay_s)])
        await Fleet.until(lambda: bool(ears.heard), seconds=LATE_S)
        assert ears.heard[0][1] == pytest.approx(delay_s, abs=0.1)
        await trio.sleep(0.06)


async def test_one_waits_for_a_timer_one_watches_and_others_sleep(
    store: JobStore, nursery: trio.Nursery, raw: RawStore
) -> None:
    ears = Ears()
    await ears.listen(nursery, store, "a", "b", "c")
    await submitted(store)
    [lease] = (await store.lease(DOWNLOAD, "other", 1, 30)).leases
    for name in "abc":
        await look(store, name)
    ears.heard.clear()
    await store.settle("other", [tried_again(lease, RETRY, 4)])
    await Fleet.until(lambda: len(ears.heard) == 2)
    # Those that look for the fleet in any case.
    assert dict(ears.heard) == pytest.approx({"a": 4.0, "b": 5.5}, abs=0.1)
    for duty in ("waiter", "watcher"):
        assert 3000 < raw.command("PTTL", raw.key(duty, DOWNLOAD, "*")) <= 5500
    looks = [await look(store, name) for name in "abc"]
    assert looks == [pytest.approx(4, abs=1), pytest.approx(5.5, abs=1), pytest.approx(25, abs=5)]


async def test_the_watcher_of_a_burst_is_told_once_and_looks_for_the_first_job(
    store: JobStore, nursery: trio.Nursery, clock: StoreClock, raw: RawStore
) -> None:
    """Else each job of a stream would put its look off, and the job of a frozen instance would wait."""
    ears = Ears()
    await ears.listen(nursery, store, "a", "b", "c", "watches")
    for name in ("a", "watches", "b", "c"):
        await look(store, name)
    for name, after_s in (("a", 0.0), ("b", 0.0), ("c", 0.5)):  # two in the same millisecond
        clock.move(after_s)
        await submitted(store, name)
    await ears.woken(store, 4)
    assert sorted(ears.heard) == [("a", 0), ("b", 0), ("c", 0), ("watches", 1.5)]
    assert 0 < raw.command("PTTL", raw.key("watcher", DOWNLOAD, "*")) <= 1500, (
        "later work has its own watcher"
    )


async def test_one_that_hears_nothing_is_passed_over(
    store: JobStore, raw: RawStore, nursery: trio.Nursery
) -> None:
    ears = Ears()
    await ears.listen(nursery, store, "lives")
    for name in ("dead", "dead too", "lives", "no watcher"):
        await look(store, name)
    await submitted(store)
    assert await ears.woken(store) == ["lives"]
    assert raw.command("EXISTS", raw.key("idle", DOWNLOAD, "*")) == 0


async def test_what_a_stopping_instance_was_woken_for_wakes_another(
    fleet: Fleet, store: JobStore, nursery: trio.Nursery
) -> None:
    ears = Ears()
    await ears.listen(nursery, store, "stops", "stays")
    for name in ("stops", "stays"):
        await look(store, name)
    await submitted(store)
    await ears.woken(store)
    await store.withdraw(DOWNLOAD, "stops")
    assert await ears.woken(store, 3) == ["stops", "stays"]
    assert fleet.idle() == []


async def test_instances_are_idle_again_after_the_store_has_forgotten_them(
    fleet: Fleet, store: JobStore, raw: RawStore
) -> None:
    await fleet.add(3)
    raw.command("DEL", raw.key("idle", DOWNLOAD, "*"))
    raw.command("SCRIPT", "FLUSH")
    raw.command("CLIENT", "KILL", "TYPE", "pubsub")
    assert await fleet.until(lambda: len(fleet.idle()) == 3) < LATE_S
    await submitted(store)
    assert await fleet.all_begun(1) < SOON_S


async def test_a_stopped_instance_is_not_woken(fleet: Fleet, store: JobStore) -> None:
    await fleet.add(2)
    fleet.instances[0].stop.begin(0)
    await fleet.until(lambda: fleet.idle() == ["i1"])
    for number in range(5):
        await submitted(store, f"g{number}")
    assert await fleet.all_begun(5) < SOON_S


# who cannot


async def test_what_one_may_not_take_goes_to_another(store: JobStore, nursery: trio.Nursery) -> None:
    ears = Ears()
    await ears.listen(nursery, store, "full of a", "free")
    for name in ("full of a", "free"):
        await look(store, name)
    await submitted(store)
    assert await ears.woken(store) == ["full of a"]
    await look(store, "full of a", shares=Shares(never=["a"]))
    assert await ears.woken(store, 3) == ["full of a", "free"]
    # Each passes it on once.
    for name in ("free", "full of a", "free"):
        await look(store, name, shares=Shares(never=["a"]))
    assert await ears.woken(store, 3) == ["full of a", "free"]
    ears.heard.clear()
    await submitted(store, "b")
    assert len(await ears.woken(store)) == 1, "who leaves some work to others takes the rest"


async def test_one_that_has_not_looked_for_long_is_not_woken(
    raw: RawStore, store: JobStore, nursery: trio.Nursery
) -> None:
    ears = Ears()
    await ears.listen(nursery, store, "frozen", "looks")
    for name in ("frozen", "looks"):
        await look(store, name)
    raw.command("ZINCRBY", raw.key("idle", DOWNLOAD, "*"), -45_001, "frozen")
    raw.command("ZINCRBY", raw.key("idle", DOWNLOAD, "*"), -30_000, "looks")
    await submitted(store)
    assert await ears.woken(store) == ["looks"]
    nursery.cancel_scope.cancel()


async def test_a_full_instance_is_not_idle(
    fleet: Fleet, store: JobStore, nursery: trio.Nursery, raw: RawStore
) -> None:
    """And somebody else waits for the timer."""
    ears = Ears()
    await ears.listen(nursery, store, "fills", "woken", "other")
    await submitted(store)
    [lease] = (await store.lease(DOWNLOAD, "fills", 9, 30)).leases
    for name in ("fills", "woken", "other", "fills"):
        await look(store, name)
    await store.settle("fills", [tried_again(lease, RETRY, 4)])
    waiter = raw.key("waiter", DOWNLOAD, "*")
    assert raw.command("GET", waiter).endswith(" fills")
    await submitted(store, "b")
    assert len((await store.lease(DOWNLOAD, "fills", 1, 30, room=1)).leases) == 1
    assert fleet.idle() == ["other"], "also if it took what another was woken for"
    await Fleet.until(lambda: raw.command("GET", waiter).endswith(" other"))


async def test_one_that_waits_for_a_far_timer_looks_before(store: JobStore) -> None:
    """A wake-up may be lost meanwhile."""
    await submitted(store)
    [lease] = (await store.lease(DOWNLOAD, "other", 1, 30)).leases
    await store.settle("other", [tried_again(lease, RETRY, 60)])
    assert await look(store, "waits") == pytest.approx(LOOK_S, abs=0.5)


async def test_a_watcher_that_is_full_gives_its_duty_to_another(
    store: JobStore, nursery: trio.Nursery, raw: RawStore
) -> None:
    ears = Ears()
    await ears.listen(nursery, store, "waits", "fills", "other")
    for name in ("waits", "fills", "other"):
        await look(store, name)
    seconds = int(raw.command("TIME")[0])
    raw.command("SET", raw.key("waiter", DOWNLOAD, "*"), f"{1000 * seconds + 3000} waits", "PX", 4500)
    assert raw.command("GET", raw.key("watcher", DOWNLOAD, "*")).endswith(" fills")
    # Without a wake-up, which would have a watcher of its own.
    raw.command("ACL", "SETUSER", "default", "-publish")
    try:
        await submitted(store)
    finally:
        raw.command("ACL", "SETUSER", "default", "+publish")
    ears.heard.clear()
    assert len((await store.lease(DOWNLOAD, "fills", 1, 30, room=1)).leases) == 1
    await Fleet.until(lambda: bool(ears.heard))
    assert dict(ears.heard) == pytest.approx({"other": 4}, abs=1)


async def test_a_full_instance_looks_for_the_fleet_no_longer(
    store: JobStore, nursery: trio.Nursery, raw: RawStore
) -> None:
    """Although there is no timer."""
    ears = Ears()
    await ears.listen(nursery, store, "fills", "other")
    for name in ("fills", "other"):
        await look(store, name)
    await submitted(store)
    assert len((await store.lease(DOWNLOAD, "fills", 1, 30, room=1)).leases) == 1
    assert raw.command("GET", raw.key("waiter", DOWNLOAD, "*")).endswith(" other")
    await Fleet.until(lambda: ("other", LOOK_S) in ears.heard)


# what else is said


async def test_an_instance_of_an_earlier_version_is_woken_if_nobody_else_is_idle(
    store: JobStore, nursery: trio.Nursery
) -> None:
    ears = Ears()
    await ears.listen(nursery, store, "")
    await submitted(store, "a")
    assert await ears.woken(store) == [""]
    await store.lease(DOWNLOAD, "earlier", 1, 30)
    await ears.listen(nursery, store, "new")
    await look(store, "new")
    await submitted(store, "b")
    assert await ears.woken(store) == ["new"]


async def test_a_cancel_reaches_the_holder(fleet: Fleet, store: JobStore) -> None:
    await fleet.add(2, work_for_ever)
    spec = await submitted(store)
    await fleet.all_begun(1)
    await store.cancel(spec, None, 60)
    assert await fleet.until(lambda: all(one.cancelled == [spec.id] for one in fleet.instances)) < SOON_S
