"""The pace after a cooldown: simulated against sites that meter, and in a real store."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from downloader.config import HostSettings, RedisSettings
from downloader.model import Cooldown, ErrorCode, Kind, Lease, Outcome, StartRate, Verdict
from downloader.store import JobStore, Library, Submission, asyncio_loop, open_store
from servers.jobs import downloaded, spec_for, tried_again
from servers.raw_store import RawStore
from servers.store_clock import StoreClock

pytestmark = pytest.mark.usefixtures("clock")

PURE = resources.files("downloader.store").joinpath("lua/_pace.lua").read_text("utf-8")
SITE = Path(__file__).with_name("metered_site.lua").read_text("utf-8")
DONE = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
REFUSED = Outcome(
    verdict=Verdict.THROTTLED,
    error="Received Status code 429 Too Many Requests",
    error_code=ErrorCode.HTTP_STATUS,
    response_code=429,
)
COOL_S = 30.0


def sites() -> Iterator[dict[str, Any]]:
    """Sites that allow 3 to 4 requests a second, each way in which they and the jobs may differ besides."""
    for seed, allowed in enumerate((3, 3.25, 3.5, 3.75, 4) * 3, start=1):
        rng = random.Random(seed)
        yield {
            "allowed": allowed,
            "burst": rng.choice((1, 5, 10, 30, 60)),
            "retry_after": rng.choice((0, 10, 60)),
            "limit": rng.choice((2, 8, 20)),
            "rate": rng.choice((0, 10)),
            "seed": seed,
        }


@pytest.mark.parametrize("site", list(sites()), ids=lambda site: f"{site['allowed']}-{site['burst']}")
def test_the_pace_finds_what_a_site_allows(raw: RawStore, site: dict[str, Any]) -> None:
    hour = json.loads(raw.command("EVAL", PURE + SITE, 0, json.dumps(site)))
    settled = [minute for minute in hour["cooldowns"] if minute >= 20]
    assert all(later - earlier > 10 for earlier, later in itertools.pairwise(settled)), settled
    per_s = sum(hour["accepted"][25:]) / (35 * 60)
    assert 0.8 * site["allowed"] <= per_s <= 1.2 * site["allowed"], hour["cooldowns"]


@pytest.mark.parametrize(
    ("pace", "minutes", "per_s"),
    [
        ("2 0 0", 60, 2),  # begins with the first start
        ("2 1 0", 1, 2.2),
        ("2 1 0", 10, 2 * 1.1**10),
        ("2 1 0", 60, 2 * 1.1**60),
        ("2 1 0", 70, None),
        ("2 1 4", 6, 2 * 1.1**6),
        ("2 1 4", math.log(1.8, 1.1) + math.log(1 / 0.9, 1.005), 4),
        ("2 1 4", math.log(1.8, 1.1) + math.log(1.1 / 0.9, 1.005) + 1, 4.4 * 1.1),
        ("2 1 4", 70, None),
        ("2 1 4", -60, 2),  # the server's clock was set back
        ("2 1", 1, None),
        ("2 1 x", 1, None),
        ("", 1, None),
    ],
)
def test_a_pace_grows(raw: RawStore, pace: str, minutes: float, per_s: float | None) -> None:
    script = PURE + "return tostring(pace_at(ARGV[1], tonumber(ARGV[2])))"
    found = raw.command("EVAL", script, 0, pace, 1 + minutes * 60_000)
    assert found == "nil" if per_s is None else float(found) == pytest.approx(per_s)


async def submit(store: JobStore, aggr_id: str = "a", count: int = 50, **fields: object) -> None:
    specs = [spec_for(store, aggr_id, **{"aggr_limit": 9} | fields) for _ in range(count)]
    await store.submit([Submission(spec=spec) for spec in specs])


async def take(store: JobStore, count: int = 9) -> list[Lease]:
    return list((await store.lease(Kind.DOWNLOAD, "me", count, 600)).leases)


async def end(store: JobStore, *leases: Lease) -> None:
    await store.settle("me", [downloaded(lease, DONE, None, 60) for lease in leases])


async def refuse(
    store: JobStore, lease: Lease, had: tuple[float, int] | None = (8.0, 1), **fields: Any
) -> None:
    rate = StartRate(*had) if had else None
    cooldown = Cooldown(seconds=COOL_S, asked=True, had=rate, host_had=rate, **fields)
    await store.settle("me", [tried_again(lease, dataclasses.replace(REFUSED, cooldown=cooldown), 0.0)])


async def pace_of(store: JobStore, aggr_id: str = "a") -> float | None:
    aggregation = await store.aggregation(aggr_id)
    assert aggregation is not None
    [load] = [load for load in (await store.load(9)).aggregations if load.aggr_id == aggr_id]
    assert load.pace == aggregation.pace
    return aggregation.pace


async def gap_s(store: JobStore) -> float | None:
    """The time until the next start, directly after a start."""
    [lease] = await take(store)
    await end(store, lease)
    return (await store.lease(Kind.DOWNLOAD, "other", 1, 600)).next_due_s


async def test_an_aggregation_starts_with_half_of_its_rate(store: JobStore, clock: StoreClock) -> None:
    await submit(store)
    first, *others = await take(store, 4)
    await end(store, *others)
    await refuse(store, first)
    assert await pace_of(store) == 4
    clock.move(COOL_S)
    assert await gap_s(store) == 0.25
    clock.move(60)
    assert await pace_of(store) == 4.4
    assert await gap_s(store) == pytest.approx(1 / 4.4, abs=0.001)


@pytest.mark.parametrize(
    ("had", "running", "pace"),
    [
        *(((8.0, 1), 1, 4), ((8.0, 2), 8, 16), ((8.0, 8), 8, 4), ((0.0, 8), 8, None), (None, 8, None)),
        pytest.param((0.1, 8), 8, 0.5, id="few came, or few are accepted"),
    ],
)
async def test_other_instances_are_taken_to_start_as_often(
    store: JobStore, clock: StoreClock, had: tuple[float, int] | None, running: int, pace: float | None
) -> None:
    await submit(store)
    first, *_ = await take(store, running)
    await refuse(store, first, had)
    assert await pace_of(store) == pace


async def test_a_rate_bounds_the_pace(store: JobStore, clock: StoreClock) -> None:
    await submit(store, aggr_rate=2)
    [first] = await take(store)
    await refuse(store, first)
    assert await pace_of(store) == 1
    clock.move(COOL_S)
    assert await gap_s(store) == 1
    clock.move(8 * 60)
    assert await pace_of(store) is None
    assert await gap_s(store) == 0.5


async def test_refusals_of_the_pace_halve_it_and_are_remembered(
    raw: RawStore, store: JobStore, clock: StoreClock
) -> None:
    await submit(store)
    [first, *others] = await take(store)
    await end(store, *others)
    await refuse(store, first)
    clock.move(COOL_S)
    await end(store, *await take(store))
    clock.move(30)
    [second] = await take(store)
    await refuse(store, second)
    assert await pace_of(store) == pytest.approx(2.1, abs=0.01)
    clock.move(COOL_S)
    await end(store, *await take(store))
    clock.move(180)
    [third] = await take(store)
    await refuse(store, third, None)  # by an instance that measures nothing
    assert await pace_of(store) == pytest.approx(2.1 * 1.331, abs=0.01)
    clock.move(COOL_S)
    [fourth] = await take(store)
    await refuse(store, fourth)
    kept = raw.command("HGET", raw.key("queue_record", Kind.DOWNLOAD, "a"), "pace")
    assert [float(number) for number in kept.split()] == pytest.approx([2.9282 / 2, 0, 2.9282], rel=1e-3)


async def test_a_site_that_refuses_everything_costs_no_pace(store: JobStore, clock: StoreClock) -> None:
    """Such as one under maintenance."""
    await submit(store, count=1)
    [lease] = await take(store)
    await refuse(store, lease)
    for _ in range(5):
        clock.move(COOL_S)
        [lease] = await take(store)
        await refuse(store, lease)
    assert await pace_of(store) == 4


async def test_a_refusal_of_requests_in_flight_is_the_same_one(store: JobStore, clock: StoreClock) -> None:
    await submit(store)
    for lease in await take(store):
        clock.move(1)
        await refuse(store, lease, (8.0, 9))
    assert await pace_of(store) == 4


async def test_an_operator_ends_the_pace(store: JobStore, clock: StoreClock) -> None:
    await submit(store)
    first, *others = await take(store)
    await end(store, *others)
    await refuse(store, first)
    await store.adjust("a", {"cooling": None})
    assert await pace_of(store) is None
    assert len(await take(store)) == 9


async def test_a_pace_outlasts_the_last_job_for_two_hours(
    raw: RawStore, store: JobStore, clock: StoreClock
) -> None:
    record = raw.key("queue_record", Kind.DOWNLOAD, "a")
    await submit(store, count=1)
    [lease] = await take(store)
    cooldown = Cooldown(seconds=COOL_S, asked=True, had=StartRate(8.0, 1))
    failed = dataclasses.replace(REFUSED, verdict=Verdict.FAILED, cooldown=cooldown)
    await store.settle("me", [downloaded(lease, failed, None, 60)])
    assert raw.command("PTTL", record) == pytest.approx(2 * 3600 * 1000, abs=5000)
    clock.move(COOL_S)
    await submit(store, count=2)
    assert raw.command("PTTL", record) == -1
    assert await gap_s(store) == 0.25
    clock.move(70 * 60)
    await end(store, *await take(store))
    assert raw.command("EXISTS", record) == 0


@pytest.mark.parametrize("of_host", [True, False])
async def test_a_host_has_a_pace_of_its_own(
    raw: RawStore, redis_settings: RedisSettings, library: Library, clock: StoreClock, *, of_host: bool
) -> None:
    """Unless a tenant's proxy, or the origin of a redirect, has refused the request."""
    limits = {"*": HostSettings(limit=9)}
    async with asyncio_loop(), open_store(redis_settings, hosts=limits, library=library) as store:
        await submit(store, "a", url="http://site.test/x")
        [first] = await take(store, 1)
        await refuse(store, first, of_host=of_host)
        clock.move(COOL_S)
        await submit(store, "b", url="http://site.test/x")
        queues = [lease.queue for lease in await take(store)]
        assert len(queues) == (1 if of_host else 9)
        clock.move(0.25)
        assert len(await take(store)) == (1 if of_host else 0)
        assert raw.command("HEXISTS", raw.key("host", "site.test"), "pace") == of_host
