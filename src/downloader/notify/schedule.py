"""When to try a callback again; pure."""

from __future__ import annotations

import random
from collections.abc import Sequence

_JITTER = 0.2
"""Each delay is up to this part shorter or longer, so that callbacks do not all return at once."""


def next_delay_s(
    tries: int, schedule: Sequence[float], *, retry_after_s: float | None = None, rng: random.Random
) -> float | None:
    """Seconds until the next attempt after `tries` (1 or more) failed; `None` if the schedule is used up.

    What the peer asked for (`retry_after_s`) is a lower limit: if the schedule's delay is shorter, the result
    is this plus jitter.
    """
    if tries > len(schedule):
        return None
    delay = schedule[max(tries, 1) - 1] * rng.uniform(1 - _JITTER, 1 + _JITTER)
    if retry_after_s is not None and delay < retry_after_s:
        delay = retry_after_s * rng.uniform(1, 1 + _JITTER)
    return delay
