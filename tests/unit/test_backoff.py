"""Pauses between attempts."""

from __future__ import annotations

from itertools import islice

from downloader.backoff import jittered, pauses


def test_pauses_double_up_to_the_longest_with_jitter() -> None:
    for pause_s, bound_s in zip(islice(pauses(0.2, 1.0), 6), (0.2, 0.4, 0.8, 1.0, 1.0, 1.0), strict=True):
        assert bound_s / 2 <= pause_s <= bound_s
    assert len({jittered(1.0) for _ in range(20)}) > 1
