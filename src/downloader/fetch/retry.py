"""When to try again: pure decisions."""

from __future__ import annotations

import random

from downloader.fetch.errors import Treatment
from downloader.model import Cooldown, Verdict

MAX_BACKOFF_S = 3600.0
"""Longest computed delay, unless `backoff_s` is longer."""

RELEASE_MIN_S = 5.0
RELEASE_MAX_S = 30.0
"""Delay after a fault of the service; random, because one fault affects many jobs at once."""

FREE_COOLDOWNS = 10
"""Number of attempts of a job that may end with a cooldown without being counted. Later attempts count, so
that every job ends."""

COOLDOWN_S = 30.0
"""The first cooldown if the origin sends no `Retry-After`. The store doubles the following ones."""

MIN_COOLDOWN_S = 1.0
"""Shortest cooldown, also for a `Retry-After` of 0: uncounted attempts must not be used up at once."""

MAX_COOLDOWN_S = 3600.0
"""Longest cooldown, so that a wrong `Retry-After` does not stop an aggregation for a day."""

COOLDOWN_JITTER = 0.2
"""Largest random share added to a cooldown without `Retry-After`, since several aggregations may use one
origin."""

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
    """The verdict for a job after a failed attempt, and the delay of the next attempt in seconds.

    Delays are exponential with full jitter: uniform between 0 and `backoff_s * 2**attempts`, at most an hour;
    never shorter than the origin's `Retry-After`.

    Args:
        treatment: of the failure.
        attempts: counted attempts before the failed one.
        throttled: attempts before the failed one that ended with a cooldown.
        max_retries: how many attempts may follow the first.
        backoff_s: bound of the first delay.
        retry_after_s: the origin's `Retry-After`; for `COOL_DOWN`, the length of the cooldown.
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
    """The cooldown of an aggregation after a 429 or 503, with the response's `Retry-After`, if any."""
    if retry_after_s is None:
        seconds = COOLDOWN_S * rng.uniform(1, 1 + COOLDOWN_JITTER)
        return Cooldown(seconds=seconds, asked=False, of_host=of_host)
    seconds = min(max(retry_after_s, MIN_COOLDOWN_S), MAX_COOLDOWN_S)
    return Cooldown(seconds=seconds, asked=True, of_host=of_host)
