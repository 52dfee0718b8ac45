"""When to try a callback again; pure."""

from __future__ import annotations

import random
from collections.abc import Sequence

_JITTER = 0.2
"""Each delay is up to this part shorter or longer, so that callbacks do not all return at once."""


def next_delay_s(
    tries: int, schedule: Sequence[float], *, retry_after_s: float | None = None, rng: random.Random
) -> float | None:
    """Seconds until the next attempt; `None` when the schedule is used up.

    Args:
        tries: failed attempts, the last one included; at least 1.
        schedule: seconds to wait after the first failure, after the second, and so on.
        retry_after_s: what the peer asked for, a lower limit of the result. If the schedule's delay is
            shorter, the result is this plus jitter.
        rng: source of the jitter.
    """
    if tries > len(schedule):
        return None
    delay = schedule[max(tries, 1) - 1] * rng.uniform(1 - _JITTER, 1 + _JITTER)
    if retry_after_s is not None and delay < retry_after_s:
        delay = retry_after_s * rng.uniform(1, 1 + _JITTER)
    return delay
