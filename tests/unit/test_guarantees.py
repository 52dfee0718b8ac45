"""Each promise names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(r"^\| (P\d+) \|(.*)\|$", (ROOT / "docs/guarantees.md").read_text("utf-8"), re.MULTILINE)
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
}


def test_there_are_ten() -> None:
    assert [promise for promise, _ in ROWS] == [f"P{number}" for number in range(1, 11)]


@pytest.mark.parametrize(("promise", "row"), ROWS)
def test_a_promise_is_proved_by_tests_that_exist(promise: str, row: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", row))
    assert named, f"{promise} names no test"
    assert named <= TESTS
