"""The pages of promises and bugs name tests that exist, and each row of the matrices has its tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rows import ROWS, marked

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/design/faults.md").read_text("utf-8")
BUGS = (ROOT / "docs/design/bugs.md").read_text("utf-8")
PROMISES = re.findall(r"^\| (P\d+) \|(.*)\|$", PAGE, re.MULTILINE)
TOLD = dict(re.findall(r"^\| ([FH]\d+) \|(.*)\|$", PAGE, re.MULTILINE))
MARKED = marked(ROOT / "tests")
TESTS = {
    name
    for path in (ROOT / "tests").rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
}


def named(text: str) -> set[str]:
    return set(re.findall(r"`(test_\w+)`", text))


@pytest.mark.parametrize(("promise", "row"), PROMISES)
def test_a_promise_is_proved_by_tests_that_exist(promise: str, row: str) -> None:
    assert named(row), f"{promise} names no test"
    assert named(row) <= TESTS


def test_each_row_is_documented() -> None:
    assert tuple(TOLD) == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_held_by_the_tests_that_it_names(row: str) -> None:
    assert named(TOLD[row]) <= MARKED[row], "on the page, and not marked with the row"
    assert named(TOLD[row]), "the page names no test"


def test_a_row_with_a_promise_names_one_that_exists() -> None:
    promises = {promise for promise, _ in PROMISES}
    for row, text in TOLD.items():
        assert set(text.split("|")[2].split()) <= promises, row
        assert text.split("|")[2].split(), row


def test_bugs_are_reproduced_by_tests_that_exist() -> None:
    rows = [line for line in BUGS.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    assert rows
    for row in rows:
        assert named(row), row
        assert named(row) <= TESTS, row
