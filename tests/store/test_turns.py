"""The turns of a lease call: aggregations that give way, and destinations by how they have answered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from downloader.config import RedisSettings
from downloader.ids import shard_of
from downloader.model import CallbackOutcome, Kind, Outcome, Verdict
from downloader.store import (
    CLUSTER_SHARDS,
    CallbackPlan,
    JobStore,
    Shares,
    Submission,
    asyncio_loop,
    open_store,
)
from servers.jobs import closed, downloaded, leased, spec_for, submitted, tried_again
from servers.raw_store import RawStore
from servers.valkey_groups import open_cluster

OK = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
DELIVERED = CallbackOutcome(verdict=Verdict.SUCCEEDED)
REFUSED = CallbackOutcome(verdict=Verdict.RETRY, error="refused")
GIVEN_UP = CallbackOutcome(verdict=Verdict.FAILED, error="refused")


async def calls_back(store: JobStore, destination: str) -> None:
    """Have a callback to this destination wait."""
    await submitted(store)
    await store.settle(
        "me", [downloaded(await leased(store), OK, CallbackPlan(queue=destination, limit=9), 0)]
    )


async def queues(store: JobStore, kind: Kind, count: int, shares: Shares) -> list[str]:
    batch = await store.lease(kind, "me", count, 10, shares=shares)
    return [lease.queue for lease in batch.leases]


async def test_who_has_more_than_its_share_comes_last_or_not_at_all(store: JobStore) -> None:
    for aggregation in ("large", "large", "large", "small"):
        await submitted(store, aggregation, aggr_limit=9)
    assert await queues(store, Kind.DOWNLOAD, 9, Shares(never=["large"])) == ["small"]
    await submitted(store, "small", aggr_limit=9)
    assert await queues(store, Kind.DOWNLOAD, 2, Shares(last=["large"])) == ["small", "large"]
    for aggregation in ("never", "last", "free"):
        await submitted(store, aggregation)
    others = Shares(never=["never", "last", "free"])
    assert await queues(store, Kind.DOWNLOAD, 1, others) == ["large"], "which goes to the end"
    assert await queues(store, Kind.DOWNLOAD, 1, Shares(never=["never"], last=["last"])) == ["free"]


async def test_destinations_that_have_not_answered_get_as_many_as_allowed(store: JobStore) -> None:
    for destination in "abc":
        await calls_back(store, f"http {destination}")
    assert len(await queues(store, Kind.CALLBACK, 9, Shares(unproven=2))) == 2


@pytest.mark.slow
async def test_the_limits_of_a_call_hold_over_all_shards_of_a_cluster() -> None:
    with open_cluster(primaries=1) as [node]:
        settings = RedisSettings(url=f"redis://127.0.0.1:{node.port}", cluster=True)
        async with asyncio_loop(), open_store(settings) as store:
            specs = [spec_for(store, f"g{number}") for number in range(400)]
            one_per_shard = {shard_of(spec.id, CLUSTER_SHARDS): spec for spec in specs}
            assert len(one_per_shard) == CLUSTER_SHARDS
            await store.submit([Submission(spec=spec) for spec in one_per_shard.values()])
            batches = [await store.lease(Kind.DOWNLOAD, "me", count, 30) for count in (1, 3, 99)]
            assert [len(batch.leases) for batch in batches] == [1, 3, CLUSTER_SHARDS - 4]
            plans = [
                downloaded(lease, OK, CallbackPlan(queue=f"http {lease.id}", limit=9), 0)
                for batch in batches
                for lease in batch.leases
            ]
            await store.settle("me", plans)
            few = CLUSTER_SHARDS // 2  # shards are asked in two rounds
            assert len(await queues(store, Kind.CALLBACK, few, Shares(unproven=1))) == 1


async def test_destinations_that_answer_and_others_take_turns(store: JobStore) -> None:
    await calls_back(store, "http proven")
    await store.settle("me", [closed(await leased(store, kind=Kind.CALLBACK), DELIVERED, 60, 9)])
    for destination in ("proven", "proven", "proven", "new"):
        await calls_back(store, f"http {destination}")
    found = await queues(store, Kind.CALLBACK, 2, Shares(unproven=9))
    assert sorted(found) == ["http new", "http proven"]


async def standing(store: JobStore, destination: str) -> str:
    """Lease the next callback to a destination; returns what the lease says of the destination."""
    await calls_back(store, destination)
    lease = await leased(store, kind=Kind.CALLBACK)
    assert lease.queue == destination
    await store.settle("me", [closed(lease, DELIVERED, 60, 9)])
    return {(True, False): "proven", (False, True): "failing", (False, False): "new"}[
        lease.proven, lease.failing
    ]


async def ends(store: JobStore, destination: str, *outcomes: CallbackOutcome) -> None:
    """Have callbacks to a destination end so, one after the other."""
    for outcome in outcomes:
        await calls_back(store, destination)
        lease = await leased(store, kind=Kind.CALLBACK)
        last = outcome.verdict is not Verdict.RETRY
        settlement = closed(lease, outcome, 60, 9) if last else tried_again(lease, outcome, 60)
        await store.settle("me", [settlement])


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], "new"),
        ([DELIVERED], "proven"),
        ([REFUSED], "failing"),
        ([GIVEN_UP], "failing"),
        ([replace(DELIVERED, slow=True)], "failing"),
        ([DELIVERED, REFUSED], "proven"),
        ([DELIVERED, replace(REFUSED, slow=True)], "failing"),
        ([DELIVERED, replace(GIVEN_UP, slow=True)], "failing"),
        ([DELIVERED, replace(DELIVERED, slow=True)], "failing"),
        ([replace(DELIVERED, slow=True), DELIVERED], "proven"),
    ],
)
async def test_a_destination_stands_as_it_has_answered(
    store: JobStore, outcomes: list[CallbackOutcome], expected: str
) -> None:
    await ends(store, "http c", *outcomes)
    assert await standing(store, "http c") == expected


async def test_destinations_that_fail_get_a_part_of_what_others_without_an_answer_get(
    store: JobStore,
) -> None:
    for name in "abc":
        await ends(store, f"http {name}", GIVEN_UP)
    for name in ("a", "b", "c", "new"):
        await calls_back(store, f"http {name}")
    assert await queues(store, Kind.CALLBACK, 9, Shares(unproven=9, failing=0)) == ["http new"]
    assert await queues(store, Kind.CALLBACK, 9, Shares(unproven=0, failing=9)) == []
    assert len(await queues(store, Kind.CALLBACK, 9, Shares(unproven=9, failing=2))) == 2


async def test_calls_for_one_callback_get_all_kinds_of_destinations(store: JobStore) -> None:
    await ends(store, "http proven", DELIVERED)
    await ends(store, "http failing", GIVEN_UP)
    for name in ("proven", "failing", "new"):
        for _ in range(40):
            await calls_back(store, f"http {name}")
    # Which kind is first follows from the time in ms, so it is chance.
    got = [(await queues(store, Kind.CALLBACK, 1, Shares()))[0] for _ in range(27)]
    assert set(got) == {"http proven", "http failing", "http new"}


async def test_a_destination_that_fails_has_a_timer_for_earlier_versions(
    store: JobStore, raw: RawStore
) -> None:
    """They do not know `failing`. A timer that is due makes them add the queue to what they know."""
    await ends(store, "http c", GIVEN_UP)
    timers = raw.key("timers", "callback")
    for _ in range(2):
        await calls_back(store, "http c")
    for name in ("me", "another"):
        [[_, due]] = raw.command("ZRANGE", timers, 0, -1, "WITHSCORES")
        now, _ = raw.command("TIME")
        assert 29 < due / 1000 - float(now) <= 60
        # The timer is due, and no share is left for the queue.
        raw.command("ZADD", timers, 1, "http c")
        shares = Shares(unproven=9, failing=0)
        assert (await store.lease(Kind.CALLBACK, name, 9, 10, shares=shares)).leases == []
    assert await queues(store, Kind.CALLBACK, 9, Shares()) == ["http c"] * 2
    assert raw.command("ZRANGE", timers, 0, -1) == []
