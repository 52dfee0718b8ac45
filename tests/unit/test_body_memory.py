"""How the aggregations share the memory for bodies."""

from __future__ import annotations

from functools import partial
from typing import cast

import trio
import trio.testing

from downloader.fetch.memory import BodyMemory
from downloader.fetch.sink import Sink
from downloader.fetch.spool import Spool


def fill(memory: BodyMemory, *aggregations: str) -> dict[str, int]:
    """Bytes that each aggregation has room for, if they take turns."""
    held = dict.fromkeys(aggregations, 0)
    growing = set(aggregations)
    while growing:
        for aggregation in sorted(growing):
            if memory.hold(aggregation, 1):
                held[aggregation] += 1
            else:
                memory.let_go(aggregation, 1)
                growing.discard(aggregation)
    return held


def test_one_aggregation_gets_half() -> None:
    assert fill(BodyMemory(1200), "a") == {"a": 600}


def test_aggregations_that_grow_together_get_the_same() -> None:
    assert fill(BodyMemory(1200), "a", "b", "c") == {"a": 300, "b": 300, "c": 300}


def test_an_aggregation_finds_room_beside_one_that_takes_all_it_can() -> None:
    memory = BodyMemory(1200)
    fill(memory, "a")
    assert not memory.hold("a", 1)
    assert memory.hold("b", 200)


def test_what_is_let_go_is_room_again() -> None:
    memory = BodyMemory(1200)
    assert memory.hold("a", 600)
    assert not memory.hold("a", 100)
    memory.let_go("a", 700)
    assert fill(memory, "a") == {"a": 600}


def test_bytes_without_room_count_too() -> None:
    memory = BodyMemory(1200)
    assert not memory.hold("a", 1300)
    assert not memory.hold("b", 1)
    memory.let_go("a", 1300)
    assert memory.hold("b", 1)


async def test_a_reservation_waits_for_room(autojump_clock: trio.testing.MockClock) -> None:
    memory = BodyMemory(1200)
    assert await memory.reserve("a", 600, within_s=1)
    assert not await memory.reserve("a", 1, within_s=1)
    assert trio.current_time() == 1
    turns: list[str] = []

    async def wait(aggregation: str, size: int) -> None:
        assert await memory.reserve(aggregation, size, within_s=100)
        turns.append(aggregation)

    async with trio.open_nursery() as nursery:
        for aggregation in ("a", "b"):
            nursery.start_soon(wait, aggregation, 400)
            await trio.testing.wait_all_tasks_blocked()
        assert await memory.reserve("c", 200, within_s=0)  # who wants less does not wait for those
        memory.let_go("a", 600)
        await trio.testing.wait_all_tasks_blocked()
        assert turns == ["a"]
        memory.let_go("c", 200)
    assert turns == ["a", "b"]
    assert trio.current_time() == 1
    memory.let_go("a", 400)
    memory.let_go("b", 400)
    assert fill(memory, "a") == {"a": 600}


async def test_a_cancelled_reservation_holds_nothing() -> None:
    memory = BodyMemory(1200)
    assert memory.hold("a", 600)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(memory.reserve, "a", 600, within_s=100))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    memory.let_go("a", 600)
    assert fill(memory, "a") == {"a": 600}


async def test_a_body_counts_beyond_its_reservation_only() -> None:
    memory = BodyMemory(400 * 1024)
    sink = Sink(cast("Spool", None), memory, "a", head_bytes=1)
    await sink.reserve(100 * 1024, within_s=0)
    for size in (90, 20):
        sink.add(bytes(size * 1024))
    assert await memory.reserve("b", 145 * 1024, within_s=0), "half of 400 less 110"
    assert not await memory.reserve("c", 80 * 1024, within_s=0)
