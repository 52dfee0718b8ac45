"""Times of the wire: exact to the millisecond, and never an error."""

from __future__ import annotations

import pytest

from downloader.wire import LAST_MS, moment, rfc3339, unix_ms

LAST = "9999-12-31T23:59:59.999Z"


@pytest.mark.parametrize("ms", [LAST_MS, LAST_MS + 1, 10**15, 10**18])
def test_a_time_after_the_last_year_is_its_last_millisecond(ms: int) -> None:
    time = moment(ms)
    assert time is not None
    assert rfc3339(time) == LAST


def test_the_last_microsecond_is_not_rounded_up() -> None:
    assert unix_ms("9999-12-31T23:59:59.999999Z") == LAST_MS
