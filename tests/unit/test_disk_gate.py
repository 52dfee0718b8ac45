from __future__ import annotations

import pytest

from downloader.service.disk import LOOK_S, DiskGate


class Disk:
    """A disk and a clock that the test sets."""

    def __init__(self) -> None:
        self.used = 0.0
        self.now = 0.0
        self.looks = 0

    def read(self) -> float:
        self.looks += 1
        return self.used

    def after(self, used: float) -> None:
        self.used = used
        self.now += LOOK_S


@pytest.mark.row("F13")
def test_it_closes_at_the_high_mark_and_opens_below_the_low_one() -> None:
    disk = Disk()
    gate = DiskGate(disk.read, high=95, low=90, clock=lambda: disk.now)
    seen = []
    for used in (94.9, 95, 94, 90, 89.9, 94):
        disk.after(used)
        seen.append(gate())
    assert seen == [True, False, False, False, True, True]


def test_it_looks_at_most_once_a_second() -> None:
    disk = Disk()
    gate = DiskGate(disk.read, high=95, low=90, clock=lambda: disk.now)
    disk.after(50)
    for _ in range(100):
        assert gate()
    assert disk.looks == 1
