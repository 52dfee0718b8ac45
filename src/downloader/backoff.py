"""Pauses between attempts: with jitter, so that attempts do not coincide, or as a server asks."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER_S = 86400.0
"""Longest delay that a peer may ask for: a day."""

_DELTA_DIGITS = 12
"""Numbers with more digits are not parsed, because that may take long."""


def jittered(seconds: float) -> float:
    """A random time between `seconds / 2` and `seconds`."""
    return seconds * random.uniform(0.5, 1)  # noqa: S311 - no secret


def pauses(first_s: float, longest_s: float) -> Iterator[float]:
    """Endless jittered pauses in seconds, doubled each time up to `longest_s`."""
    pause_s = first_s
    while True:
        yield jittered(pause_s)
        pause_s = min(2 * pause_s, longest_s)


def parse_retry_after(value: str, now: datetime) -> float | None:
    """The delay in seconds of a `Retry-After` field: delta-seconds or an HTTP-date (RFC 9110, 10.2.3).

    Never negative, at most a day; `None` for anything else.
    """
    text = value.strip()
    if text.isascii() and text.isdigit():
        if len(text) > _DELTA_DIGITS:
            return MAX_RETRY_AFTER_S
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for an offset of many digits
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)  # the zone was "-0000", which means UTC here
    return min(max(math.ceil((moment - now).total_seconds()), 0.0), MAX_RETRY_AFTER_S)
