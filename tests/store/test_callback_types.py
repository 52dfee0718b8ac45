"""Notifiers that can deliver different types of callbacks: each gets those that it can deliver, at once."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from downloader.model import CallbackOutcome, Kind, Outcome, Verdict
from downloader.store import LOOK_S, CallbackPlan, JobStore, LeaseBatch, Library, Shares, TokenShare
from servers.jobs import downloaded, handed_back, leased, submitted, tried_again
from servers.raw_store import RawStore
from servers.store_clock import StoreClock, clocked_library

OK = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
RETRY = CallbackOutcome(verdict=Verdict.RETRY, error="e")
BOTH = ("http", "kafka")


@pytest.fixture
def library(clock: StoreClock) -> Library:  # which they read
    return clocked_library(cluster=True)


async def calls_back(store: JobStore, *queues: str, token: str = "", limit: int = 9) -> None:
    for queue in queues:
        await submitted(store, token=token)
        plan = CallbackPlan(queue=queue, limit=limit, token=token)
        await store.settle("me", [downloaded(await leased(store), OK, plan, 0)])


async def asks(
    store: JobStore,
    name: str,
    types: Collection[str] | None,
    count: int = 9,
    tokens: Mapping[str, TokenShare] | None = None,
) -> LeaseBatch:
    shares = Shares(unproven=count, tokens=tokens or {})
    return await store.lease(Kind.CALLBACK, name, count, 30, shares=shares, room=count + 1, types=types)


def queues(batch: LeaseBatch) -> list[str]:
    return [lease.queue for lease in batch.leases]


def idle(raw: RawStore) -> set[str]:
    sets = raw.command("KEYS", raw.key("idle", "callback", "*"))
    return {name for key in sets for name in raw.command("ZRANGE", key, 0, -1)}


async def test_a_callback_wakes_one_that_can_deliver_it(
    store: JobStore, raw: RawStore, clock: StoreClock
) -> None:
    for name, types in (("http", ["http"]), ("both", BOTH), ("http too", ["http"])):
        assert not queues(await asks(store, name, types))
        clock.move(0.1)
    await calls_back(store, "kafka a")
    assert idle(raw) == {"http", "http too"}
    await asks(store, "http", ["http"])
    assert queues(await asks(store, "both", BOTH)) == ["kafka a"]


@pytest.mark.row("F26")
async def test_f26_it_gets_the_callback_at_once(store: JobStore, raw: RawStore) -> None:
    await calls_back(store, "kafka a")
    unproven = raw.key("unproven")
    raw.command("DEL", unproven)
    await asks(store, "kafka", ["kafka"])
    assert idle(raw) == {"kafka"}
    raw.command("ZADD", unproven, 1, "kafka a")
    assert not queues(await asks(store, "http", ["http"]))
    assert idle(raw) == {"http"}
    for name in (raw.key("types"), raw.key("aside", "kafka")):
        assert raw.command("PTTL", name) > 0, "whatever becomes of the instances"
    assert queues(await asks(store, "kafka", ["kafka"])) == ["kafka a"]


@pytest.mark.parametrize("tokens", [None, {"alice": TokenShare(most=0)}])
async def test_many_queues_for_others_are_in_nobodys_way(
    store: JobStore, tokens: Mapping[str, TokenShare] | None
) -> None:
    await asks(store, "kafka", ["kafka"])
    topics = [f"kafka {number}" for number in range(130)]
    await calls_back(store, *topics, "http a", token="bob")
    first, second = [await asks(store, "http", ["http"], tokens=tokens) for _ in range(2)]
    assert (queues(first), first.look_s) == ([], 0)
    assert queues(second) == ["http a"]
    assert second.look_s != 0
    assert sorted(queues(await asks(store, "kafka", ["kafka"], 200))) == sorted(topics)


async def test_a_type_may_have_a_hyphen(store: JobStore) -> None:
    await asks(store, "sqs", ["sqs-fifo"])
    await calls_back(store, "sqs-fifo a")
    assert not queues(await asks(store, "http", ["http"]))
    assert queues(await asks(store, "sqs", ["sqs-fifo"])) == ["sqs-fifo a"]


async def test_what_was_left_to_others_takes_turns_with_the_rest(store: JobStore) -> None:
    await asks(store, "both", BOTH)
    await asks(store, "http", ["http"])
    await calls_back(store, "kafka a")
    assert not queues(await asks(store, "http", ["http"]))
    await calls_back(store, *(f"http {number}" for number in range(9)))
    assert "kafka a" in queues(await asks(store, "both", BOTH, 3))


async def test_what_was_left_to_others_counts_as_its_destination_has_answered(
    raw: RawStore, store: JobStore
) -> None:
    await asks(store, "kafka", ["kafka"])
    await asks(store, "http", ["http"])
    for name in ("a", "b", "c"):
        await calls_back(store, f"kafka {name}")
        if name != "c":
            raw.command("SET", raw.key("proven", f"kafka {name}"), "1")
    assert not queues(await asks(store, "http", ["http"]))
    batch = await store.lease(
        Kind.CALLBACK, "kafka", 9, 60, shares=Shares(unproven=0), room=9, types=["kafka"]
    )
    assert sorted((lease.queue, lease.proven) for lease in batch.leases) == [
        ("kafka a", True),
        ("kafka b", True),
    ]
    raw.command("SET", raw.key("disproven", "kafka c"), "1")
    batch = await store.lease(
        Kind.CALLBACK, "kafka", 9, 60, shares=Shares(failing=0), room=9, types=["kafka"]
    )
    assert queues(batch) == []


async def test_what_was_left_to_others_keeps_its_limit(raw: RawStore, store: JobStore) -> None:
    """Also if its timer has made it runnable for all meanwhile."""
    await asks(store, "kafka", ["kafka"])
    await calls_back(store, "kafka a", "kafka a", limit=1)
    assert not queues(await asks(store, "http", ["http"]))
    raw.command("ZADD", raw.key("unproven"), 1, "kafka a")
    assert queues(await asks(store, "kafka", ["kafka"])) == ["kafka a"]


async def test_a_callback_that_nobody_can_deliver_is_given_to_each(
    store: JobStore, clock: StoreClock
) -> None:
    """Each hands it back, and the job's log names the backend that is missing."""
    await store.lease(Kind.DOWNLOAD, "processor", 1, 30, room=9)
    await asks(store, "http", ["http"])
    await calls_back(store, "kafka a")
    [lease] = (await asks(store, "http", ["http"])).leases
    await store.settle("http", [handed_back(lease, "not configured here", 2)])
    batch = await asks(store, "http", ["http"])
    assert batch.look_s == pytest.approx(2, abs=0.01), "it waits for the timer"
    clock.move(2)
    assert queues(await asks(store, "http", ["http"])) == ["kafka a"]


async def test_those_that_are_gone_leave_it_to_each_again(store: JobStore, clock: StoreClock) -> None:
    await asks(store, "kafka", ["kafka"])
    await calls_back(store, "kafka a")
    assert not queues(await asks(store, "http", ["http"]))
    clock.move(61)
    assert queues(await asks(store, "http", ["http"])) == ["kafka a"]


async def test_those_that_look_now_and_then_are_not_gone(store: JobStore, clock: StoreClock) -> None:
    for _ in range(2):
        await asks(store, "kafka", ["kafka"])
        clock.move(40)
    await calls_back(store, "kafka a")
    assert not queues(await asks(store, "http", ["http"]))


async def test_none_waits_for_the_timers_of_others(store: JobStore) -> None:
    for name in ("http", "kafka"):
        await asks(store, name, [name])
    await calls_back(store, "kafka a", "kafka b")
    leases = (await asks(store, "kafka", ["kafka"])).leases
    await store.settle("kafka", [tried_again(lease, RETRY, 1) for lease in leases])
    assert (await asks(store, "http", ["http"])).next_due_s is None


async def test_each_waits_for_the_first_timer_of_its_types(store: JobStore, clock: StoreClock) -> None:
    """Also behind many timers of others."""
    await asks(store, "http", ["http"])
    await asks(store, "kafka", ["kafka"])
    await calls_back(store, *(f"kafka {number}" for number in range(70)))
    batch = await asks(store, "kafka", ["kafka"], 70)
    later = [tried_again(lease, RETRY, 1 + number / 100) for number, lease in enumerate(batch.leases)]
    await calls_back(store, "http a")
    [lease] = (await asks(store, "http", ["http"])).leases
    assert (await asks(store, "http", ["http"])).look_s == pytest.approx(LOOK_S, abs=0.5)
    await store.settle("kafka", later)
    await store.settle("http", [tried_again(lease, RETRY, 3)])
    assert (await asks(store, "kafka", ["kafka"])).look_s == pytest.approx(1, abs=0.01)
    # The timers behind the first 64 are looked at when these are over.
    assert (await asks(store, "http", ["http"])).look_s == pytest.approx(1.63, abs=0.01)
    clock.move(1.63)
    assert (await asks(store, "http", ["http"])).look_s == pytest.approx(1.37, abs=0.01)
    clock.move(1.37)
    assert queues(await asks(store, "http", ["http"])) == ["http a"]


async def test_a_timer_is_told_to_one_that_can_deliver_it(
    store: JobStore, raw: RawStore, clock: StoreClock
) -> None:
    for name, types in (("http", ["http"]), ("kafka", ["kafka"])):
        await asks(store, name, types)
    await calls_back(store, "http a", "kafka a")
    [http] = (await asks(store, "http", ["http"])).leases
    [kafka] = (await asks(store, "kafka", ["kafka"])).leases
    for name, types in (("http", ["http"]), ("kafka", ["kafka"])):
        await asks(store, name, types)
    await store.settle("http", [tried_again(http, RETRY, 1)])
    await store.settle("kafka", [tried_again(kafka, RETRY, 2)])
    waiter = raw.command("GET", raw.key("waiter", "callback", ",kafka,"))
    assert waiter == f"{clock.now_ms + 2000} kafka"


async def test_one_that_stops_wakes_one_that_can_do_the_same(store: JobStore, raw: RawStore) -> None:
    for name, types in (("http", ["http"]), ("kafka", ["kafka"]), ("kafka too", ["kafka"])):
        await asks(store, name, types)
    await calls_back(store, "kafka a")
    [woken] = {"kafka", "kafka too"} - idle(raw)
    await store.withdraw(Kind.CALLBACK, woken, ["kafka"])
    assert idle(raw) == {"http"}
