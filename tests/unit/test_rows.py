"""The report of the matrices finds a row without a test, and one with a test that did not pass."""

from __future__ import annotations

import pytest

from rows import ROWS, Matrix


@pytest.fixture
def matrix() -> Matrix:
    """A matrix without a fault."""
    whole = Matrix()
    for row in ROWS:
        whole.add([row], f"tests/x.py::test_{row}[case]", "passed")
    return whole


def test_all_rows_hold(matrix: Matrix) -> None:
    assert matrix.at_fault(ran=True) == []
    assert matrix.lines(ran=True)[0] == "F1   ok    tests/x.py::test_F1 (1 passed)"


def test_a_row_without_a_test_is_at_fault(matrix: Matrix) -> None:
    matrix.outcomes["H3"].clear()
    assert matrix.at_fault(ran=True) == ["H3"]
    assert "H3   FAULT no test" in matrix.lines(ran=True)


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_a_failed_case_fails_its_row(matrix: Matrix, outcome: str) -> None:
    matrix.add(["F9", "F28"], "tests/x.py::test_F9[other]", outcome)
    assert matrix.at_fault(ran=True) == ["F9", "F28"]
    told = ", ".join(sorted(["1 passed", f"1 {outcome}"]))
    assert f"F9   FAULT tests/x.py::test_F9 ({told})" in matrix.lines(ran=True)


def test_a_test_that_was_only_collected_does_not_count(matrix: Matrix) -> None:
    matrix.add(["F1"], "tests/x.py::test_more", "collected")
    assert matrix.at_fault(ran=True) == ["F1"]
