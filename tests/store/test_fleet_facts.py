"""What the instances of a fleet tell each other: reports, what waits and runs, and wake-ups."""

from __future__ import annotations

import pytest
import trio

from downloader.model import ErrorCode, Kind, Outcome, Verdict
from downloader.store import CallbackPlan, JobStore, Load
from downloader.store.views import counts
from downloader.store.views import load as load_of
from downloader.wire import AggregationLoad, moment
from servers.jobs import downloaded, handed_back, leased, submitted, tried_again
from servers.raw_store import RawStore

OK = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
RETRY = Outcome(verdict=Verdict.RETRY, error="e", error_code=ErrorCode.TIMEOUT)
PLAN = CallbackPlan(queue="http http://c", limit=4)


# instances


async def test_reports_of_live_instances_are_listed(store: JobStore) -> None:
    await store.report("one", "processor", {"counters": {"x": 1}}, 60)
    await store.report("two", "processor", {"counters": {"x": 2}}, 60)
    await store.report("three", "notifier", {"counters": {"x": 4}}, 60)
    assert sorted(facts["counters"]["x"] for facts in await store.reports("processor")) == [1, 2]
    await store.leave("one", "processor")
    assert [facts["counters"]["x"] for facts in await store.reports("processor")] == [2]


async def test_a_silent_instance_vanishes(raw: RawStore, store: JobStore) -> None:
    await store.report("one", "processor", {}, 0.02)
    await trio.sleep(0.04)
    assert await store.reports("processor") == []
    await store.report("two", "processor", {}, 30)
    instances = raw.key("instances", "processor")
    assert raw.command("ZRANGE", instances, 0, -1) == ["two"]
    for key in (raw.key("instance", "processor", "two"), instances):
        assert raw.command("PTTL", key) == pytest.approx(30_000, abs=5_000)


async def test_an_instance_that_reports_seldom_outlasts_one_that_reports_often(
    raw: RawStore, store: JobStore
) -> None:
    await store.report("seldom", "processor", {"instance": "seldom"}, 180)
    await trio.sleep(0.03)
    await store.report("often", "processor", {"instance": "often"}, 0.02)
    names = {facts["instance"] for facts in await store.reports("processor")}
    assert "seldom" in names
    assert raw.command("PTTL", raw.key("instances", "processor")) > 150_000


# what goes on


async def test_the_busiest_aggregations_come_first(store: JobStore) -> None:
    for aggregation, jobs in {"few": 1, "runs": 3, "waits": 2}.items():
        for _ in range(jobs):
            await submitted(store, aggregation, aggr_limit=3)
    batch = await store.lease(Kind.DOWNLOAD, "me", 6, 10)
    waiting = [lease for lease in batch.leases if lease.queue == "waits"]
    await store.settle("me", [handed_back(lease, "", 60) for lease in waiting])
    load = await store.load(2)
    assert [(one.aggr_id, one.pending, one.in_flight, one.limit) for one in load.aggregations] == [
        ("runs", 0, 3, 3),
        ("waits", 2, 0, 3),
    ]
    assert (load.total, load.downloads, load.callbacks) == (3, 4, 0)
    assert not any(one.paused for one in load.aggregations)
    assert list((await store.aggregation_sizes()).items()) == [
        ("waits", 2),
        ("runs", 0),
        ("few", 0),
    ]


async def test_an_empty_fleet_does_nothing(store: JobStore) -> None:
    assert await store.load(9) == Load(aggregations=[], total=0, downloads=0, callbacks=0)


def busiest_answer(name: str, score: str, total: int, downloads: int, callbacks: int) -> list[object]:
    """What `busiest.lua` answers for a shard."""
    aggregation = ["name", name, "score", score, "limit", "2", "paused", "1" if name == "b" else ""]
    aggregation += ["cooling", "5000" if name == "b" else ""]
    counted = ["total", total, "downloads", downloads, "callbacks", callbacks]
    return [*counted, "aggregations", [aggregation]]


def test_shards_are_one_fleet() -> None:
    load = load_of([busiest_answer("a", "1.000001", 5, 1, 0), busiest_answer("b", "3", 2, 0, 3)], 1)
    busiest = AggregationLoad(
        aggr_id="b", pending=3, in_flight=0, limit=2, paused=True, cooling_until=moment(5000)
    )
    assert load == Load(aggregations=[busiest], total=7, downloads=1, callbacks=3)


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("5.000002", (3, 2)),
        ("1.000001", (0, 1)),
        ("123456789.000256", (123456533, 256)),
        (1000000.999999, (1, 999999)),
        ("7", (7, 0)),  # as the version before this layout's wrote it
    ],
)
def test_a_score_tells_pending_and_running(score: str | float, expected: tuple[int, int]) -> None:
    assert counts(score) == expected


# wake-ups


async def test_a_submission_wakes_the_listeners(store: JobStore, nursery: trio.Nursery) -> None:
    channels = {kind: trio.open_memory_channel[None](9) for kind in (Kind.DOWNLOAD, Kind.CALLBACK)}
    wakes = {kind: lambda *_, send=send: send.send_nowait(None) for kind, (send, _) in channels.items()}
    await nursery.start(store.listen, wakes)
    with trio.fail_after(20):
        for _, receive in channels.values():
            await receive.receive()  # of the subscription itself
        await submitted(store)
        await channels[Kind.DOWNLOAD][1].receive()
        assert channels[Kind.CALLBACK][1].statistics().current_buffer_used == 0
        await store.settle("me", [downloaded(await leased(store), OK, PLAN, 0)])
        await channels[Kind.CALLBACK][1].receive()


async def test_an_earlier_timer_wakes_the_listeners(store: JobStore, nursery: trio.Nursery) -> None:
    """Whoever sleeps until a job's next attempt was told of it when there was none."""
    for aggregation in "ab":
        await submitted(store, aggregation)
    soon, late = (await store.lease(Kind.DOWNLOAD, "me", 2, 10)).leases
    send, receive = trio.open_memory_channel[str](9)
    await nursery.start(store.listen, {Kind.DOWNLOAD: lambda *_: send.send_nowait("wake")})
    with trio.fail_after(20):
        await receive.receive()  # of the subscription itself
        await store.settle("me", [tried_again(soon, RETRY, 30)])
        await receive.receive()
    await store.settle("me", [tried_again(late, RETRY, 60)])
    await store.ping()
    assert receive.statistics().current_buffer_used == 0
    assert (await store.lease(Kind.DOWNLOAD, "other", 1, 10)).next_due_s == pytest.approx(30, abs=15)
