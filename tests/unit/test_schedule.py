"""The schedule of callbacks that were not delivered."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader.notify.send import next_delay_s

SCHEDULE = [5.0, 60.0, 600.0, 3600.0, 21600.0]


@pytest.mark.parametrize("tries", [1, 2, 3, 4, 5])
@given(seed=st.integers())
def test_each_delay_is_near_its_entry(tries: int, seed: int) -> None:
    delay = next_delay_s(tries, SCHEDULE, rng=random.Random(seed))
    assert delay is not None
    assert 0.8 * SCHEDULE[tries - 1] <= delay <= 1.2 * SCHEDULE[tries - 1]


def test_the_schedule_is_used_up_in_the_end() -> None:
    assert next_delay_s(6, SCHEDULE, rng=random.Random(0)) is None
    assert next_delay_s(6, SCHEDULE, retry_after_s=3.0, rng=random.Random(0)) is None
    assert next_delay_s(1, [], rng=random.Random(0)) is None


def test_delays_differ() -> None:
    rng = random.Random(0)
    assert len({next_delay_s(1, SCHEDULE, rng=rng) for _ in range(50)}) == 50


@given(
    tries=st.integers(1, 5),
    retry_after_s=st.floats(0, 1e6),
    seed=st.integers(),
)
def test_retry_after_is_a_floor_and_not_far_exceeded(tries: int, retry_after_s: float, seed: int) -> None:
    delay = next_delay_s(tries, SCHEDULE, retry_after_s=retry_after_s, rng=random.Random(seed))
    assert delay is not None
    assert delay >= retry_after_s
    assert delay <= 1.2 * max(retry_after_s, SCHEDULE[tries - 1])


def test_many_with_one_retry_after_do_not_come_back_at_once() -> None:
    rng = random.Random(0)
    assert len({next_delay_s(1, SCHEDULE, retry_after_s=120.0, rng=rng) for _ in range(50)}) == 50
