"""Limits of a host, which aggregations share: never exceeded, and no other host waits."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import pytest

from downloader.config import HostSettings, RedisSettings
from downloader.model import Cooldown, ErrorCode, Kind, Lease, Outcome, Verdict
from downloader.store import JobStore, Library, Settled, Submission, asyncio_loop, open_store
from servers.jobs import downloaded, handed_back, spec_for, tried_again
from servers.raw_store import RawStore
from servers.store_clock import StoreClock

pytestmark = pytest.mark.usefixtures("clock")

DONE = Outcome(verdict=Verdict.SUCCEEDED)
LIMITS = {
    "*": HostSettings(limit=3),
    "slow.test": HostSettings(limit=1),
    "*.many.test": HostSettings(limit=2),
    "deep.many.test": HostSettings(limit=9),
    "paced.test": HostSettings(rate=0.5),
    "shy.test": HostSettings(delay=4, limit=2),
}


@pytest.fixture
async def hosts(redis_settings: RedisSettings, library: Library) -> AsyncIterator[JobStore]:
    async with asyncio_loop(), open_store(redis_settings, hosts=LIMITS, library=library) as opened:
        yield opened


async def submit(store: JobStore, aggr_id: str, host: str, count: int = 1, **fields: object) -> list[str]:
    fields = {"aggr_limit": 99, "url": f"http://{host}/x"} | fields
    specs = [spec_for(store, aggr_id, **fields) for _ in range(count)]
    await store.submit([Submission(spec=spec) for spec in specs])
    return [spec.id for spec in specs]


async def take(store: JobStore, count: int = 99, lease_s: float = 600) -> list[Lease]:
    return list((await store.lease(Kind.DOWNLOAD, "me", count, lease_s)).leases)


async def due_s(store: JobStore) -> float | None:
    return (await store.lease(Kind.DOWNLOAD, "other", 1, 600)).next_due_s


async def end(store: JobStore, leases: Sequence[Lease]) -> None:
    assert set(await store.settle("me", [downloaded(lease, DONE, None, 60) for lease in leases])) <= {
        Settled.DONE
    }


def queues(leases: Sequence[Lease]) -> dict[str, int]:
    return Counter(lease.queue for lease in leases)


async def keys_of_hosts(raw: RawStore, store: JobStore) -> list[str]:
    found: list[str] = raw.command("KEYS", f"{raw.keys.base(0)}*")
    names = {"visits", "parked", "waiting"}
    return [key for key in found if key.removeprefix(raw.keys.base(0)).split(":")[0] in names]


async def test_aggregations_share_a_hosts_limit_in_turns(
    raw: RawStore, hosts: JobStore, clock: StoreClock
) -> None:
    await submit(hosts, "a", "one.test", 20)
    await submit(hosts, "b", "one.test", 20)
    running = await take(hosts)
    assert queues(running) in ({"a": 2, "b": 1}, {"a": 1, "b": 2})
    taken = list(running)
    while running:
        await end(hosts, running[:1])
        clock.move(0.001)
        more = await take(hosts)
        running = [*running[1:], *more]
        taken += more
        assert len(running) <= 3
        if len(taken) < 36:
            assert len(running) == 3, "a place that is free is taken at once, though all ask again much later"
            assert abs(queues(taken)["a"] - queues(taken)["b"]) <= 2
    assert queues(taken) == {"a": 20, "b": 20}
    assert await keys_of_hosts(raw, hosts) == []


async def test_a_lease_that_is_given_again_keeps_its_place_at_the_host(
    raw: RawStore, hosts: JobStore, clock: StoreClock
) -> None:
    [job_id] = await submit(hosts, "a", "one.test")
    ask = {"kind": "download", "owner": "me", "request": "r", "count": 1, "lease_ms": 60_000, "hosts": ""}
    ask |= {"last": [], "never": [], "unproven": 0}
    visits = raw.key("visits", "one.test")
    raw.run("lease", ask)
    ends = float(raw.command("ZSCORE", visits, job_id))
    raw.command("ZINCRBY", visits, -50_000, job_id)
    raw.run("lease", ask)
    assert float(raw.command("ZSCORE", visits, job_id)) >= ends


async def test_what_waits_for_a_host_expires(raw: RawStore, hosts: JobStore) -> None:
    """Also once the only aggregation that waits has been called, and waits again."""
    await submit(hosts, "a", "slow.test", 3)
    await end(hosts, await take(hosts))
    assert raw.command("PTTL", raw.key("waiting", "slow.test")) > 0


@pytest.mark.parametrize(
    ("host", "count"),
    [
        ("slow.test", 1),
        ("SLOW.test.", 1),
        ("x@slow.test:8080", 1),
        ("more.slow.test", 3),
        ("many.test", 3),
        ("a.many.test", 2),
        ("a.b.many.test", 2),
        ("deep.many.test", 5),
        ("xn--slw-rna.test", 3),
        ("[::1]", 3),
        ("paced.test", 1),
    ],
)
async def test_the_nearest_limit_applies(hosts: JobStore, clock: StoreClock, host: str, count: int) -> None:
    await submit(hosts, "a", host, 5)
    assert len(await take(hosts)) == count


async def test_each_name_below_a_pattern_has_a_limit_of_its_own(hosts: JobStore, clock: StoreClock) -> None:
    for name in ("a", "b", "c"):
        await submit(hosts, "a", f"{name}.many.test", 3)
    assert len(await take(hosts)) == 6


async def test_other_hosts_of_the_aggregation_do_not_wait(hosts: JobStore, clock: StoreClock) -> None:
    await submit(hosts, "a", "slow.test", 300)
    clock.move(1)
    [behind] = await submit(hosts, "a", "other.test")
    found: list[Lease] = []
    while (batch := await hosts.lease(Kind.DOWNLOAD, "me", 9, 600)).next_due_s == 0 or not found:
        found += batch.leases
    found += batch.leases
    assert len(found) == 2
    assert behind in {lease.id for lease in found}
    assert (await hosts.load(9)).aggregations[0].pending == 299


async def test_a_large_backlog_is_not_scanned(raw: RawStore, hosts: JobStore, clock: StoreClock) -> None:
    await submit(hosts, "a", "slow.test", 1500)
    running: list[Lease] = []
    while (batch := await hosts.lease(Kind.DOWNLOAD, "me", 64, 600)).next_due_s == 0:
        running += batch.leases
    assert batch.next_due_s is not None
    assert batch.next_due_s >= 1
    parked = raw.key("parked", "slow.test", "a")
    assert raw.command("ZCARD", parked) == 1000
    for _ in range(3):
        await end(hosts, running)
        clock.move(0.001)
        running = await take(hosts)
        assert len(running) == 1


async def test_many_aggregations_that_wait_for_a_host_cost_little(hosts: JobStore, clock: StoreClock) -> None:
    """If each asked again after a second, ten thousand of them would keep the store busy for nothing."""
    names = [f"g{number}" for number in range(401)]
    specs = [spec_for(hosts, name, aggr_limit=9, url="http://slow.test/x") for name in names]
    await hosts.submit([Submission(spec=spec) for spec in specs])
    [running] = await take(hosts, 500)
    waiting = [each for each in await hosts.described(names) if each.aggr_id != running.queue]
    due_s = [each.next_due_at.timestamp() - clock.now_ms / 1000 for each in waiting if each.next_due_at]
    assert [sum(second <= each < second + 1 for each in due_s) for second in range(5)] == [
        0,
        200,
        100,
        100,
        0,
    ]
    await end(hosts, [running])
    assert len(await take(hosts)) == 1, "the next one is made due all the same"


async def calls_of(raw: RawStore, store: JobStore, command: str) -> int:
    stats = raw.command("INFO", "commandstats")
    return int(stats.get(f"cmdstat_{command}", {"calls": 0})["calls"])


@pytest.mark.row("H32")
async def test_full_hosts_are_asked_once_a_second(raw: RawStore, hosts: JobStore, clock: StoreClock) -> None:
    """Not once for each download that waits, which made 300 full hosts take 91% of a core."""
    names, seconds = [f"h{number}.test" for number in range(20)], 20
    for name in names:
        await submit(hosts, name, name, 3)
    assert len(await take(hosts)) == 60
    for name in names:
        await submit(hosts, name, name, 30)
    while (await hosts.lease(Kind.DOWNLOAD, "me", 64, 600)).next_due_s == 0:
        pass
    before = await calls_of(raw, hosts, "zremrangebyscore")  # of which each ask makes one
    for _ in range(4 * seconds):
        clock.move(0.25)
        while (await hosts.lease(Kind.DOWNLOAD, "me", 64, 600)).next_due_s == 0:
            pass
    assert await calls_of(raw, hosts, "zremrangebyscore") - before <= 1.5 * len(names) * seconds


@pytest.mark.row("H32")
async def test_aggregations_at_their_own_limit_block_nobody(
    raw: RawStore, hosts: JobStore, clock: StoreClock
) -> None:
    """Sixteen of them at the head of those that wait kept the others from being called by name."""
    await submit(hosts, "first", "slow.test")
    running = await take(hosts)
    clogs = [f"clog{number}" for number in range(80)]
    for name in clogs:
        await submit(hosts, name, "slow.test", aggr_limit=1)
    assert await take(hosts, 200) == []
    for name in clogs:
        await submit(hosts, name, f"{name}.elsewhere.test", aggr_limit=1)
    assert len(await take(hosts, 200)) == len(clogs), "each is at its own limit now"
    await submit(hosts, "other", "slow.test", 20)
    assert await take(hosts) == []
    for started in range(20):
        before = await calls_of(raw, hosts, "hmget")
        await end(hosts, running)
        assert started == 0 or await calls_of(raw, hosts, "hmget") - before < 20, "they are looked at once"
        clock.move(0.01)
        running = await take(hosts)
        assert queues(running) == {"other": 1}, f"{started} have started one after the other"


async def test_an_aggregation_at_its_limit_is_called_when_one_of_its_own_ends(
    hosts: JobStore, clock: StoreClock
) -> None:
    """Not only when it asks by itself, a second later."""
    await submit(hosts, "first", "deep.many.test", 9)
    running = await take(hosts)
    await submit(hosts, "a", "deep.many.test", 30, aggr_limit=5)
    await submit(hosts, "b", "deep.many.test", 30, aggr_limit=4)
    assert await take(hosts) == [], "all of them wait for the host now"
    for ended in list(running):
        await end(hosts, [ended])
        clock.move(0.001)
        running = [lease for lease in running if lease is not ended] + await take(hosts)
    for name in "aabb" * 7:
        assert queues(running) == {"a": 5, "b": 4}
        ended = next(lease for lease in running if lease.queue == name)
        await end(hosts, [ended])
        clock.move(0.001)
        running = [lease for lease in running if lease is not ended] + await take(hosts)


async def test_a_late_renewal_takes_a_place_again(hosts: JobStore, clock: StoreClock) -> None:
    await submit(hosts, "a", "slow.test", 2)
    [lease] = await take(hosts, lease_s=10)
    clock.move(11)
    [other] = await take(hosts, lease_s=600)
    assert await hosts.renew(Kind.DOWNLOAD, "me", [lease], 600) == [Settled.DONE]
    await end(hosts, [other])
    await submit(hosts, "b", "slow.test")
    assert await take(hosts) == [], "the first still runs"


async def test_a_place_that_is_given_up_in_any_way_is_free(hosts: JobStore, clock: StoreClock) -> None:
    await submit(hosts, "a", "slow.test", 9)
    [lease] = await take(hosts)
    later = Outcome(verdict=Verdict.RETRY, error="x", error_code=ErrorCode.CONNECT)
    await hosts.settle("me", [tried_again(lease, later, 60)])
    [lease] = await take(hosts)
    await hosts.settle("me", [handed_back(lease, "", 60)])
    [lease] = await take(hosts, lease_s=10)
    assert await take(hosts) == []
    clock.move(6)
    await hosts.renew(Kind.DOWNLOAD, "me", [lease], 10)
    clock.move(6)
    assert await take(hosts) == [], "its lease was renewed, and its place with it"
    clock.move(4.001)
    await hosts.sweep(Kind.DOWNLOAD)
    [lease] = await take(hosts)
    await hosts.cancel(lease.spec, None, 60)
    assert await take(hosts) == [], "its holder has not stopped"
    assert await hosts.settle("me", [downloaded(lease, DONE, None, 60)]) == [Settled.CANCELLED]
    assert len(await take(hosts)) == 1


async def test_the_holder_of_a_job_that_nobody_keeps_gives_its_place_up(
    hosts: JobStore, clock: StoreClock
) -> None:
    await submit(hosts, "a", "slow.test", 2)
    [lease] = await take(hosts)
    await hosts.cancel(lease.spec, None, 0)
    await hosts.remove([job.spec.id for job in (await hosts.reap(9, 60)).jobs])
    assert await take(hosts) == [], "its holder has not stopped"
    assert await hosts.settle("me", [downloaded(lease, DONE, None, 0)]) == [Settled.CANCELLED]
    assert len(await take(hosts)) == 1


async def test_a_place_ends_with_the_lease_of_a_holder_that_died(hosts: JobStore, clock: StoreClock) -> None:
    """Also before the sweep, and if an instance of an earlier version sweeps."""
    await submit(hosts, "a", "slow.test", 2)
    assert len(await take(hosts, lease_s=10)) == 1
    assert await take(hosts) == []
    clock.move(11)
    assert len(await take(hosts)) == 1


async def test_a_job_cancelled_while_it_waits_for_a_host_is_skipped(
    hosts: JobStore, clock: StoreClock
) -> None:
    ids = await submit(hosts, "a", "slow.test", 4)
    [lease] = await take(hosts)
    waiting = sorted(set(ids) - {lease.id})
    for job_id in waiting[:2]:
        view = await hosts.get(job_id)
        assert view is not None
        await hosts.cancel(view.spec, None, 60)
    await end(hosts, [lease])
    assert [lease.id for lease in await take(hosts)] == waiting[2:]


async def test_priorities_apply_to_those_that_wait_for_a_host(hosts: JobStore, clock: StoreClock) -> None:
    await submit(hosts, "a", "slow.test", 3)
    [lease] = await take(hosts)
    clock.move(0.001)
    [high] = await submit(hosts, "a", "slow.test", priority=7)
    [highest] = await submit(hosts, "a", "slow.test", priority=9)
    for expected in (highest, high):
        assert await take(hosts) == []
        await end(hosts, [lease])
        [lease] = await take(hosts)
        assert lease.id == expected


async def test_an_aggregation_that_cannot_start_does_not_keep_a_place_from_others(
    hosts: JobStore, clock: StoreClock
) -> None:
    await submit(hosts, "a", "slow.test", 2)
    [lease] = await take(hosts)
    await submit(hosts, "b", "slow.test")
    assert await take(hosts) == []
    await hosts.adjust("a", {"paused": True})
    await end(hosts, [lease])
    assert queues(await take(hosts)) == {"b": 1}


async def test_a_rate_is_shared_and_no_other_host_waits(hosts: JobStore, clock: StoreClock) -> None:
    for aggr_id in ("a", "b"):
        await submit(hosts, aggr_id, "paced.test", 30)
    await submit(hosts, "a", "one.test", 3)
    taken = await take(hosts)
    assert Counter(lease.spec.host for lease in taken) == {"paced.test": 1, "one.test": 3}
    begun, starts = clock.now_ms, 1
    while starts < 20:
        wait_s = await due_s(hosts)
        assert wait_s is not None
        clock.move(min(wait_s, 0.5) + 0.01)
        starts += len(await take(hosts))
        assert starts <= 1 + (clock.now_ms - begun) / 2000
    assert clock.now_ms - begun <= 1.05 * 19 * 2000


async def test_a_delay_is_kept_between_any_two(hosts: JobStore, clock: StoreClock) -> None:
    for aggr_id in ("a", "b", "c"):
        await submit(hosts, aggr_id, "shy.test", 3)
    times = []
    for _ in range(400):
        leases = await take(hosts)
        times += [clock.now_ms] * len(leases)
        await end(hosts, leases)
        clock.move(0.1)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(times) == 9
    assert all(4000 <= gap <= 4200 for gap in gaps), gaps


async def test_the_delay_of_a_robots_txt_is_the_hosts(hosts: JobStore, clock: StoreClock) -> None:
    await hosts.set_crawl_delay("one.test", 5, 600)
    await submit(hosts, "a", "one.test", 9)
    await submit(hosts, "b", "one.test", 9)
    times = []
    for _ in range(200):
        times += [clock.now_ms] * len(await take(hosts))
        clock.move(0.1)
    assert len(times) == 3, "its limit"
    assert all(5000 <= after - before <= 5200 for before, after in itertools.pairwise(times))


async def test_a_cooldown_is_of_the_host_too(hosts: JobStore, clock: StoreClock) -> None:
    await submit(hosts, "a", "one.test", 2)
    [first, _] = await take(hosts)
    await submit(hosts, "b", "one.test", 5)
    await submit(hosts, "b", "two.test")
    throttled = Outcome(
        verdict=Verdict.THROTTLED,
        error="Received Status code 429 Too Many Requests",
        error_code=ErrorCode.HTTP_STATUS,
        cooldown=Cooldown(seconds=5, asked=True),
    )
    await hosts.settle("me", [tried_again(first, throttled, 0.0)])
    assert [lease.spec.host for lease in await take(hosts)] == ["two.test"]
    clock.move(4.999)
    assert await take(hosts) == []
    clock.move(0.001)
    assert len(await take(hosts)) == 2, "its limit is 3, and one is in flight"
    view = await hosts.get(first.id)
    assert view is not None
    assert view.download.attempts == 0


@pytest.mark.row("H29")
async def test_a_cooldown_that_the_host_has_not_asked_for_is_of_the_aggregation_only(
    hosts: JobStore, clock: StoreClock
) -> None:
    await submit(hosts, "a", "one.test", 2)
    [first, _] = await take(hosts)
    await submit(hosts, "a", "one.test", 1)
    await submit(hosts, "b", "one.test", 1)
    cooldown = Cooldown(seconds=3600, asked=True, of_host=False)
    failed = Outcome(verdict=Verdict.FAILED, error="429", cooldown=cooldown)
    await hosts.settle("me", [downloaded(first, failed, None, 60)])
    assert [lease.queue for lease in await take(hosts)] == ["b"]


async def test_jobs_that_wait_for_a_host_wait_for_its_cooldown(hosts: JobStore, clock: StoreClock) -> None:
    await submit(hosts, "a", "slow.test", 1)
    [first] = await take(hosts)
    await submit(hosts, "b", "slow.test", 3)
    assert await take(hosts) == []
    failed = Outcome(verdict=Verdict.FAILED, error="429", cooldown=Cooldown(seconds=5, asked=True))
    await hosts.settle("me", [downloaded(first, failed, None, 60)])
    assert await take(hosts) == []
    clock.move(4.999)
    assert await take(hosts) == []
    clock.move(0.001)
    assert len(await take(hosts)) == 1


async def test_without_limits_jobs_have_no_host(store: JobStore) -> None:
    await submit(store, "a", "slow.test", 2)
    assert [lease.spec.host for lease in await take(store)] == ["", ""]


async def test_an_instance_without_host_limits_leases_jobs_that_wait(
    hosts: JobStore, redis_settings: RedisSettings, library: Library, clock: StoreClock
) -> None:
    """No job is stuck if the limits are taken out of the configuration."""
    await submit(hosts, "a", "slow.test", 3)
    assert len(await take(hosts)) == 1
    assert await take(hosts) == []
    clock.move(31)
    async with open_store(redis_settings, hosts={}, library=library) as without:
        found = await take(without)
        assert len(found) == 2
        await end(without, found)
