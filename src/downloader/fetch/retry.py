"""When to try again: pure decisions."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from downloader.fetch.errors import Treatment
from downloader.model import Verdict

MAX_BACKOFF_S = 3600.0
"""Where exponential growth ends: a job with many retries still gets tried every hour or so."""

MAX_RETRY_AFTER_S = 86400.0
"""An origin may hold a job back for a day, not for good."""

RELEASE_MIN_S = 5.0
RELEASE_MAX_S = 30.0
"""How long a job waits after a fault of our own: spread out, since all jobs here have it at once."""

_MAX_DOUBLINGS = 32
"""Beyond any cap, and far from the overflow of a float."""

_DELTA_DIGITS = 12
"""More digits of seconds than this are no delay but an attack on `int()`."""


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
        retry_after_s: the origin's wish, if it had one.
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


def parse_retry_after(value: bytes, now: datetime) -> float | None:
    """Seconds that a `Retry-After` field asks for: delta-seconds or an HTTP-date (RFC 9110, 10.2.3).

    Never negative, at most a day; `None` for anything else.
    """
    text = value.decode("latin-1").strip()
    if text.isascii() and text.isdigit():
        if len(text) > _DELTA_DIGITS:
            return MAX_RETRY_AFTER_S
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for an offset of many digits
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)  # "-0000", which RFC 9110 has no other meaning for
    return min(max(math.ceil((moment - now).total_seconds()), 0.0), MAX_RETRY_AFTER_S)
