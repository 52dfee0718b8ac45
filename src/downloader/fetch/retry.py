"""When to try again: pure decisions."""

from __future__ import annotations

import random

from downloader.fetch.errors import Treatment
from downloader.model import Verdict

MAX_BACKOFF_S = 3600.0
"""Longest computed delay, unless `backoff_s` is longer."""

RELEASE_MIN_S = 5.0
RELEASE_MAX_S = 30.0
"""Delay after a fault of our own; random, because such a fault affects many jobs at once."""

_MAX_DOUBLINGS = 32
"""Enough to reach the cap, and far below the overflow of a float."""


def decide(
    treatment: Treatment,
    *,
    attempts: int,
    max_retries: int,
    backoff_s: float,
    retry_after_s: float | None,
    rng: random.Random,
) -> tuple[Verdict, float | None]:
    """What becomes of a job after a failed attempt, and after how many seconds.

    Delays are exponential with full jitter: uniform between 0 and `backoff_s * 2**attempts`, at most
    an hour; never shorter than the origin's `Retry-After`.

    Args:
        treatment: what the failure calls for.
        attempts: attempts that ended before this one.
        max_retries: how many more than one attempt the job may have.
        backoff_s: bound of the first delay.
        retry_after_s: what the origin asked for, if it did.
        rng: source of the jitter.
    """
    if treatment is Treatment.RELEASE:
        return Verdict.RELEASE, rng.uniform(RELEASE_MIN_S, RELEASE_MAX_S)
    if treatment is Treatment.FINAL or attempts >= max_retries:
        return Verdict.FAILED, None
    bound = min(backoff_s * 2.0 ** min(attempts, _MAX_DOUBLINGS), max(MAX_BACKOFF_S, backoff_s))
    delay = rng.uniform(0.0, bound)
    if retry_after_s is not None:
        delay = max(delay, retry_after_s)
    return Verdict.RETRY, delay
