"""A server's clock in a test's hands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

LIBRARY = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
"""Debian's `libfaketime`, which CI installs."""


@dataclass(frozen=True, slots=True)
class Clock:
    """What a program sees of the time whose environment has `environ`; its monotonic clock stays as it is."""

    file: Path

    @property
    def environ(self) -> Mapping[str, str]:
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset_s: int) -> None:
        """Set the clock this far before (negative: behind) the machine's clock."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{offset_s:+d}s\n")
        new.replace(self.file)


def open_clock(folder: Path) -> Clock:
    """A clock that shows the right time until the first `set`."""
    if LIBRARY is None:
        pytest.skip("libfaketime is not installed")
    clock = Clock(folder / "clock")
    clock.set(0)
    return clock
