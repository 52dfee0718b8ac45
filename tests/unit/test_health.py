"""Which callbacks are let through to a backend, and which are handed back."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from downloader.notify.health import (
    JITTER,
    LONGEST_S,
    SHORTEST_S,
    STALL_S,
    UNHEALTHY_AFTER,
    Admission,
    BackendHealth,
    Deliver,
    Gate,
    HandBack,
    Passage,
    Wait,
    admit,
    share,
)

NOW = 1000.0
GOOD = BackendHealth()


def bad(*, for_s: float) -> BackendHealth:
    return BackendHealth(UNHEALTHY_AFTER, "it hangs", NOW - for_s)


def asked(health: BackendHealth = GOOD, **facts: Any) -> Admission:
    given = {"in_flight": 0, "share": 8, "begun_at": 0.0, "moved_at": 0.0} | facts
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
    assert asked(in_flight=7) == Deliver()
    assert asked(in_flight=8, moved_at=NOW - STALL_S / 2) == Wait(NOW + STALL_S / 2)


@pytest.mark.parametrize(
    ("quiet", "delay"), [(STALL_S, SHORTEST_S), (7.0, 7.0), (1000.0, LONGEST_S)], ids=["new", "old", "ages"]
)
def test_a_full_backend_that_ends_nothing_is_given_no_more(quiet: float, delay: float) -> None:
    assert asked(in_flight=8, moved_at=NOW - quiet) == HandBack(delay)


@pytest.mark.parametrize(
    ("lost", "begun", "expected"),
    [
        (0.1, 5.0, HandBack(SHORTEST_S)),  # not yet
        (1.0, 5.0, Deliver()),  # the first probe
        (1.5, 0.5, HandBack(SHORTEST_S)),
        (2.0, 1.0, Deliver()),  # the second
        (8.0, 3.5, HandBack(4.5)),  # its pause is as long as it has lasted
        (9.0, 4.5, Deliver()),
        (3600.0, 29.0, HandBack(LONGEST_S)),
        (3600.0, 30.0, Deliver()),
    ],
)
def test_an_unhealthy_backend_is_probed_at_growing_pauses(
    lost: float, begun: float, expected: Admission
) -> None:
    assert asked(bad(for_s=lost), begun_at=NOW - begun) == expected


def test_probes_that_hang_are_bounded_too() -> None:
    assert asked(bad(for_s=3600), begun_at=NOW - 60, in_flight=8) == HandBack(LONGEST_S)


def gate(*names: str, slots: int = 8) -> Gate:
    return Gate(names, slots=slots, rng=random.Random(0))


async def entered(opened: Gate, backend: str) -> Passage:
    passage = await opened.enter(backend)
    assert isinstance(passage, Passage), passage
    return passage


async def test_a_backend_alone_has_all_slots(autojump_clock: trio.testing.MockClock) -> None:
    opened = gate("a")
    passages = [await entered(opened, "a") for _ in range(8)]
    for passage in passages:
        opened.leave(passage)


async def test_what_waits_for_a_full_backend_goes_on_when_one_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    opened = gate("a", "b")
    held = [await entered(opened, "a") for _ in range(6)]
    later: list[Passage | HandBack] = []

    async def enter() -> None:
        later.append(await opened.enter("a"))

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(enter)
        await trio.testing.wait_all_tasks_blocked()
        assert later == []
        assert isinstance(await opened.enter("b"), Passage)
        opened.leave(held.pop())
        await trio.testing.wait_all_tasks_blocked()
        # The other backend's slot has made the share smaller: 6 of 8, then 5 of 7.
        assert later == []
        opened.leave(held.pop())
        await trio.testing.wait_all_tasks_blocked()
        assert [type(one) for one in later] == [Passage]
    assert [type(one) for one in later] == [Passage, HandBack]


async def test_a_stalled_backend_leaves_room_and_keeps_nobody_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    opened = gate("a", "b")
    held = [await entered(opened, "a") for _ in range(6)]
    first = await opened.enter("a")
    assert trio.current_time() == pytest.approx(STALL_S)
    assert isinstance(first, HandBack)
    began = trio.current_time()
    second = await opened.enter("a")
    assert isinstance(second, HandBack)
    assert trio.current_time() == began
    await trio.sleep(10)
    third = await opened.enter("a")
    assert isinstance(third, HandBack)
    assert abs(third.delay_s - 10.5) <= 10.5 * JITTER
    opened.leave(await entered(opened, "b"))
    for passage in held:
        opened.leave(passage)
    await entered(opened, "a")


async def test_an_unhealthy_backend_gets_one_callback_at_a_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    opened = gate("a", "b")
    with capture_logs() as logs:
        for _ in range(UNHEALTHY_AFTER):
            opened.health.failed("a", "it raises", begun_at=trio.current_time())
        assert isinstance(await opened.enter("a"), HandBack)
        await trio.sleep(SHORTEST_S)
        probe = await entered(opened, "a")
        assert isinstance(await opened.enter("a"), HandBack)
        opened.leave(await entered(opened, "b"))
        opened.leave(probe)
        opened.health.worked("a")
    assert [entry["event"] for entry in logs] == [
        *["backend.failed"] * UNHEALTHY_AFTER,
        "backend.unhealthy",
        "backend.healthy",
    ]
    for _ in range(2):
        await entered(opened, "a")


async def test_what_began_before_a_recovery_says_nothing_of_now(
    autojump_clock: trio.testing.MockClock,
) -> None:
    health = gate("a", "b").health
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
    opened = gate("a", "b")
    for _ in range(UNHEALTHY_AFTER):
        opened.health.failed("a", "it raises", begun_at=trio.current_time())
    probes = 0
    while trio.current_time() < 3600:
        answer = await opened.enter("a")
        if isinstance(answer, HandBack):
            assert answer.delay_s <= LONGEST_S * (1 + JITTER)
        else:
            probes += 1
            opened.health.failed("a", "it raises", begun_at=trio.current_time())
            opened.leave(answer)
        await trio.sleep(0.5)
    assert 100 < probes < 130


async def test_one_that_does_not_heed_a_cancel_is_found(autojump_clock: trio.testing.MockClock) -> None:
    opened = gate("a", "b", slots=16)
    for _ in range(UNHEALTHY_AFTER):
        await entered(opened, "a")
    opened.leave(await entered(opened, "a"))
    await trio.sleep(9)
    opened.note_late(10)
    assert opened.health.unhealthy == 0
    await trio.sleep(2)
    opened.note_late(10)
    opened.note_late(10)
    assert opened.health["a"].failures == UNHEALTHY_AFTER, "each is counted once"
    assert opened.health.facts()["a"] == {
        "healthy": False,
        "last_error": "backend a failed: does not end when it is cancelled",
    }
