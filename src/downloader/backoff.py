"""Random pauses between attempts, so that tasks that failed together are not repeated together."""

from __future__ import annotations

import random
from collections.abc import Iterator


def jittered(seconds: float) -> float:
    """A random time between `seconds / 2` and `seconds`."""
    return seconds * random.uniform(0.5, 1)  # noqa: S311 - no secret


def pauses(first_s: float, longest_s: float) -> Iterator[float]:
    """Endless jittered pauses in seconds, doubled each time up to `longest_s`."""
    pause_s = first_s
    while True:
        yield jittered(pause_s)
        pause_s = min(2 * pause_s, longest_s)
