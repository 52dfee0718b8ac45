"""How the aggregations share the memory for bodies."""

from __future__ import annotations

from downloader.fetch.memory import BodyMemory


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
