"""When to try again: pure decisions."""

from __future__ import annotations

import random

from downloader.fetch.errors import Treatment
from downloader.model import Cooldown, Verdict

MAX_BACKOFF_S = 3600.0
"""Longest computed delay, unless `backoff_s` is longer."""

RELEASE_MIN_S = 5.0
RELEASE_MAX_S = 30.0
"""Delay after a fault of our own; random, because such a fault affects many jobs at once."""

FREE_COOLDOWNS = 10
"""How many attempts of a job may end with a cooldown without being counted. Further ones count, so that every
job ends."""

COOLDOWN_S = 30.0
"""The first cooldown, if the origin does not say how long. The store doubles it."""

MIN_COOLDOWN_S = 1.0
"""Shortest cooldown, also for a `Retry-After` of 0: uncounted attempts must not be used up at once."""

MAX_COOLDOWN_S = 3600.0
"""Longest cooldown, whatever the origin asks for, so that a wrong answer does not stop an aggregation
for a day."""

COOLDOWN_JITTER = 0.2
"""Share of the cooldown that is added at random if the origin gives no length: several aggregations may
have one origin."""

_MAX_DOUBLINGS = 32
"""Enough to reach the cap, and far below the overflow of a float."""


def decide(
    treatment: Treatment,
    *,
    attempts: int,
    throttled: int = 0,
    max_retries: int,
    backoff_s: float,
    retry_after_s: float | None,
    rng: random.Random,
) -> tuple[Verdict, float | None]:
    """What becomes of a job after a failed attempt, and after how many seconds.

    Delays are exponential with full jitter: uniform between 0 and `backoff_s * 2**attempts`, at most an hour;
    never shorter than the origin's `Retry-After`.

    Args:
        treatment: of the failure.
        attempts: attempts that ended before this one and count.
        throttled: attempts that ended before this one with a cooldown.
        max_retries: how many more than one attempt the job may have.
        backoff_s: bound of the first delay.
        retry_after_s: what the origin asked for, if it did; the length of a cooldown.
        rng: source of the jitter.
    """
    if treatment is Treatment.RELEASE:
        if retry_after_s is not None:
            return Verdict.RELEASE, retry_after_s
        return Verdict.RELEASE, rng.uniform(RELEASE_MIN_S, RELEASE_MAX_S)
    cools_down = treatment is Treatment.COOL_DOWN
    if cools_down and throttled < FREE_COOLDOWNS:
        return Verdict.THROTTLED, retry_after_s
    if treatment is Treatment.FINAL or attempts >= max_retries:
        return Verdict.FAILED, None
    if cools_down:
        return Verdict.RETRY, retry_after_s
    bound = min(backoff_s * 2.0 ** min(attempts, _MAX_DOUBLINGS), max(MAX_BACKOFF_S, backoff_s))
    delay = rng.uniform(0.0, bound)
    if retry_after_s is not None:
        delay = max(delay, retry_after_s)
    return Verdict.RETRY, delay


def cooldown(retry_after_s: float | None, rng: random.Random, *, of_host: bool = True) -> Cooldown:
    """The cooldown of an aggregation whose origin asked for a pause, perhaps of `retry_after_s` seconds."""
    if retry_after_s is None:
        seconds = COOLDOWN_S * rng.uniform(1, 1 + COOLDOWN_JITTER)
        return Cooldown(seconds=seconds, asked=False, of_host=of_host)
    seconds = min(max(retry_after_s, MIN_COOLDOWN_S), MAX_COOLDOWN_S)
    return Cooldown(seconds=seconds, asked=True, of_host=of_host)
