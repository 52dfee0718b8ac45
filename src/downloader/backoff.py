"""Pauses between attempts, at random, so that those that fail together do not come back together."""

from __future__ import annotations

import random
from collections.abc import Iterator


def jittered(seconds: float) -> float:
    """Between half and all of the time."""
    return seconds * random.uniform(0.5, 1)  # noqa: S311 - no secret


def pauses(first_s: float, longest_s: float) -> Iterator[float]:
    """Pauses without an end, in seconds: each is twice as long as the one before, up to the longest."""
    pause_s = first_s
    while True:
        yield jittered(pause_s)
        pause_s = min(2 * pause_s, longest_s)
