"""Which callbacks are let through to a backend, and which are handed back."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from downloader.notify import Bulkhead, Deferred
from downloader.notify.bulkhead import (
    JITTER,
    LONGEST_S,
    SHORTEST_S,
    STALL_S,
    UNKNOWN_RELEASES_PER_S,
    Admission,
    Admitted,
    Slot,
    Wait,
    admit,
    share,
)
from downloader.notify.health import UNHEALTHY_AFTER, BackendHealth

NOW = 1000.0
GOOD = BackendHealth()


def bad(*, for_s: float) -> BackendHealth:
    return BackendHealth(UNHEALTHY_AFTER, "it hangs", NOW - for_s)


def asked(health: BackendHealth = GOOD, **facts: Any) -> Admission:
    given = {"room": True, "begun_at": 0.0, "moved_at": 0.0} | facts
    return admit(NOW, health, **given)


@pytest.mark.parametrize(
    ("slots", "others", "backends", "expected"),
    [
        (64, 0, 1, 64),
        (64, 0, 2, 48),
        (64, 48, 2, 12),
        (64, 60, 3, 3),
        (64, 63, 4, 1),
        (64, 64, 4, 1),
        (2, 0, 2, 1),
        (1, 0, 2, 1),
    ],
)
def test_the_share_of_a_backend(slots: int, others: int, backends: int, expected: int) -> None:
    assert share(slots, others=others, backends=backends) == expected


@pytest.mark.parametrize(("slots", "hanging"), [(2, 1), (4, 1), (8, 2), (24, 3), (64, 3), (256, 4)])
def test_backends_that_hang_leave_a_slot(slots: int, hanging: int) -> None:
    taken = 0
    for _ in range(hanging):
        taken += share(slots, others=taken, backends=hanging + 1)
    assert taken < slots


def test_a_healthy_backend_goes_on_up_to_its_share() -> None:
    assert asked() == Admitted()
    assert asked(room=False, moved_at=NOW - STALL_S / 2) == Wait(NOW + STALL_S / 2)


@pytest.mark.parametrize(
    ("quiet", "delay"), [(STALL_S, SHORTEST_S), (7.0, 7.0), (1000.0, LONGEST_S)], ids=["new", "old", "ages"]
)
def test_a_full_backend_that_completes_nothing_gets_no_more(quiet: float, delay: float) -> None:
    assert asked(room=False, moved_at=NOW - quiet) == Deferred(delay)


@pytest.mark.parametrize(
    ("lost", "begun", "expected"),
    [
        (0.1, 5.0, Deferred(SHORTEST_S)),  # not yet
        (1.0, 5.0, Admitted()),  # the first probe
        (1.5, 0.5, Deferred(SHORTEST_S)),
        (2.0, 1.0, Admitted()),  # the second
        (8.0, 3.5, Deferred(4.5)),  # its pause is as long as it has lasted
        (9.0, 4.5, Admitted()),
        (3600.0, 29.0, Deferred(LONGEST_S)),
        (3600.0, 30.0, Admitted()),
    ],
)
def test_an_unhealthy_backend_is_probed_at_growing_pauses(
    lost: float, begun: float, expected: Admission
) -> None:
    assert asked(bad(for_s=lost), begun_at=NOW - begun) == expected


def test_probes_that_hang_are_bounded_too() -> None:
    assert asked(bad(for_s=3600), begun_at=NOW - 60, room=False) == Deferred(LONGEST_S)


def bulkhead(*names: str, slots: int = 8) -> Bulkhead:
    return Bulkhead(names, slots=slots, rng=random.Random(0))


async def acquired(opened: Bulkhead, backend: str, *, proven: bool = True) -> Slot:
    slot = await opened.acquire(backend, proven=proven)
    assert isinstance(slot, Slot), slot
    return slot


async def test_a_backend_alone_has_all_slots(autojump_clock: trio.testing.MockClock) -> None:
    opened = bulkhead("a")
    slots = [await acquired(opened, "a") for _ in range(8)]
    for slot in slots:
        opened.release(slot)


async def test_a_backend_that_hangs_leaves_slots_to_new_destinations_of_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    opened = bulkhead("a", "b", slots=16)
    hanging = [await acquired(opened, "a", proven=False) for _ in range(6)]
    assert isinstance(await opened.acquire("a", proven=False), Deferred), "6 of the 8 that they share"
    await acquired(opened, "a")
    other = await acquired(opened, "b", proven=False)
    assert isinstance(await opened.acquire("b", proven=False), Deferred)
    opened.release(other)
    for slot in hanging:
        opened.release(slot)
    await acquired(opened, "b", proven=False)


@pytest.mark.parametrize("slots", [1, 2, 3])
async def test_few_slots_still_reach_new_destinations(
    autojump_clock: trio.testing.MockClock, slots: int
) -> None:
    await acquired(bulkhead("a", slots=slots), "a", proven=False)


async def test_a_waiting_callback_is_sent_when_a_slot_is_freed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    opened = bulkhead("a", "b")
    held = [await acquired(opened, "a") for _ in range(6)]
    later: list[Slot | Deferred] = []

    async def enter() -> None:
        later.append(await opened.acquire("a"))

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(enter)
        await trio.testing.wait_all_tasks_blocked()
        assert later == []
        assert isinstance(await opened.acquire("b"), Slot)
        opened.release(held.pop())
        await trio.testing.wait_all_tasks_blocked()
        # The other backend's slot has made the share smaller: 6 of 8, then 5 of 7.
        assert later == []
        opened.release(held.pop())
        await trio.testing.wait_all_tasks_blocked()
        assert [type(one) for one in later] == [Slot]
    assert [type(one) for one in later] == [Slot, Deferred]


async def test_a_freed_slot_goes_to_a_callback_that_may_have_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The callback to a new destination came first, but new destinations have used up their half."""
    opened = bulkhead("a", slots=4)
    new = [await acquired(opened, "a", proven=False) for _ in range(2)]
    held = [await acquired(opened, "a") for _ in range(2)]
    later: list[tuple[bool, Slot | Deferred]] = []

    async def enter(*, proven: bool) -> None:
        later.append((proven, await opened.acquire("a", proven=proven)))

    async with trio.open_nursery() as nursery:
        for proven in (False, True):
            nursery.start_soon(partial(enter, proven=proven))
            await trio.testing.wait_all_tasks_blocked()
        opened.release(held.pop())
        await trio.testing.wait_all_tasks_blocked()
        assert [(proven, type(slot)) for proven, slot in later] == [(True, Slot)]
        opened.release(new.pop())
        await trio.testing.wait_all_tasks_blocked()
        assert [(proven, type(slot)) for proven, slot in later] == [(True, Slot), (False, Slot)]
    assert trio.current_time() == 0


async def test_a_stalled_backend_leaves_slots_and_delays_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    opened = bulkhead("a", "b")
    held = [await acquired(opened, "a") for _ in range(6)]
    first = await opened.acquire("a")
    assert trio.current_time() == pytest.approx(STALL_S)
    assert isinstance(first, Deferred)
    began = trio.current_time()
    second = await opened.acquire("a")
    assert isinstance(second, Deferred)
    assert trio.current_time() == began
    await trio.sleep(10)
    third = await opened.acquire("a")
    assert isinstance(third, Deferred)
    assert abs(third.delay_s - 10.5) <= 10.5 * JITTER
    opened.release(await acquired(opened, "b"))
    for slot in held:
        opened.release(slot)
    await acquired(opened, "a")


async def test_an_unhealthy_backend_gets_one_callback_at_a_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    opened = bulkhead("a", "b")
    with capture_logs() as logs:
        for _ in range(UNHEALTHY_AFTER):
            opened.health.failed("a", "it raises", begun_at=trio.current_time())
        assert isinstance(await opened.acquire("a"), Deferred)
        await trio.sleep(SHORTEST_S)
        probe = await acquired(opened, "a")
        assert isinstance(await opened.acquire("a"), Deferred)
        opened.release(await acquired(opened, "b"))
        opened.release(probe)
        opened.health.worked("a")
    assert [entry["event"] for entry in logs] == [
        *["backend.failed"] * UNHEALTHY_AFTER,
        "backend.unhealthy",
        "backend.healthy",
    ]
    for _ in range(2):
        await acquired(opened, "a")


async def test_a_failure_that_began_before_a_recovery_is_not_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    health = bulkhead("a", "b").health
    began = trio.current_time()
    await trio.sleep(5)
    for number in range(UNHEALTHY_AFTER):
        counts = health.failed("a", "it hangs", begun_at=began)
        assert counts is (number < UNHEALTHY_AFTER - 1)
    health.worked("a")
    for _ in range(2 * UNHEALTHY_AFTER):
        assert not health.failed("a", "it hangs", begun_at=began)
    assert health["a"].healthy
    assert health.failed("a", "it hangs", begun_at=trio.current_time() + 1)


async def test_probes_of_an_hour_are_few(autojump_clock: trio.testing.MockClock) -> None:
    opened = bulkhead("a", "b")
    for _ in range(UNHEALTHY_AFTER):
        opened.health.failed("a", "it raises", begun_at=trio.current_time())
    probes = 0
    while trio.current_time() < 3600:
        answer = await opened.acquire("a")
        if isinstance(answer, Deferred):
            assert answer.delay_s <= LONGEST_S * (1 + JITTER)
        else:
            probes += 1
            opened.health.failed("a", "it raises", begun_at=trio.current_time())
            opened.release(answer)
        await trio.sleep(0.5)
    assert 100 < probes < 130


async def test_a_delivery_that_ignores_a_cancel_is_found(autojump_clock: trio.testing.MockClock) -> None:
    opened = bulkhead("a", "b", slots=16)
    for _ in range(UNHEALTHY_AFTER):
        await acquired(opened, "a")
    opened.release(await acquired(opened, "a"))
    await trio.sleep(9)
    opened.note_late(10)
    assert opened.health.unhealthy == 0
    await trio.sleep(2)
    opened.note_late(10)
    opened.note_late(10)
    assert opened.health["a"].failures == UNHEALTHY_AFTER, "each is counted once"
    assert opened.health.facts()["a"] == {
        "healthy": False,
        "last_error": "backend a failed: did not end after a cancel",
    }


@pytest.mark.row("F26")
async def test_a_backend_that_is_not_configured_is_left_to_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    opened = bulkhead("a")
    with capture_logs() as logs:
        answers = [await opened.acquire("kafka") for _ in range(10_000)]
    delays = []
    for answer in answers:
        assert isinstance(answer, Deferred)
        assert answer.reason == "backend kafka is not configured here: there is no [backends.kafka]"
        delays.append(answer.delay_s)
    for index, delay_s in (
        (0, SHORTEST_S),
        (500, SHORTEST_S + 500 / UNKNOWN_RELEASES_PER_S),
        (9_999, LONGEST_S),
    ):
        assert abs(delays[index] - delay_s) <= delay_s * JITTER
    assert [(entry["event"], entry["backend"]) for entry in logs] == [("backend.failed", "kafka")]
    assert isinstance(await opened.acquire("a"), Slot)
