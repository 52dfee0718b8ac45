"""A pytest plugin: which test holds which row of the two matrices, and how each ended.

A test that holds a row is called `test_f5_...` or marked `@pytest.mark.row("F5")`. `pytest --rows` runs those
tests alone and prints a line for each row, with its tests and their outcomes; a row that has no test, or one
with a test that did anything but pass, fails the run. `pytest --rows --collect-only` lists without running.
The rows themselves are told in `docs/design/faults.md`.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_PAGE = Path(__file__).parents[1] / "docs" / "design" / "faults.md"
ROWS = tuple(re.findall(r"^\| ([FH]\d+) \|", _PAGE.read_text("utf-8"), re.MULTILINE))

_PROPERTY = "row"


@dataclass
class Matrix:
    """What is known of each row's tests."""

    outcomes: dict[str, dict[str, Counter[str]]] = field(
        default_factory=lambda: {row: defaultdict(Counter) for row in ROWS}
    )
    """By row and test function: how many of its cases passed, failed, were skipped or only collected."""

    def add(self, rows: Iterable[str], nodeid: str, outcome: str) -> None:
        for row in rows:
            self.outcomes[row][nodeid.split("[", maxsplit=1)[0]][outcome] += 1

    def at_fault(self, *, ran: bool) -> list[str]:
        """Rows without a test, or with one that did anything but pass."""
        good = {"passed"} if ran else {"collected"}
        return [
            row
            for row, tests in self.outcomes.items()
            if not tests or any(cases.keys() - good for cases in tests.values())
        ]

    def lines(self, *, ran: bool) -> list[str]:
        """One for each row."""
        bad = set(self.at_fault(ran=ran))
        return [
            f"{row:<4} {('FAULT' if row in bad else 'ok'):<6}"
            + ("; ".join(f"{test} ({_told(cases)})" for test, cases in sorted(tests.items())) or "no test")
            for row, tests in self.outcomes.items()
        ]


def _told(cases: Counter[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(cases.items()))


def rows_of(item: pytest.Item) -> list[str]:
    """The rows that a test holds.

    Raises:
        UsageError: its name or a mark has a row that does not exist.
    """
    found = _of_name(item.name) + [str(row) for mark in item.iter_markers("row") for row in mark.args]
    if unknown := [row for row in found if row not in ROWS]:
        raise pytest.UsageError(f"{item.nodeid}: no such row: {', '.join(unknown)}")
    return list(dict.fromkeys(found))


def _of_name(name: str) -> list[str]:
    return [row.upper() for row in re.findall(r"^test_([fh]\d+)_", name)]


class _Report:
    """Gathers outcomes on the process that prints them, whether or not workers run the tests."""

    def __init__(self, config: pytest.Config) -> None:
        self.matrix = Matrix()
        self.ran = not config.option.collectonly

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if not self.ran:
            for item in session.items:
                self.matrix.add(rows_of(item), item.nodeid, "collected")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A skip or an error may come before or after the call.
        if report.when == "call" or report.outcome != "passed":
            rows = [str(value) for name, value in report.user_properties if name == _PROPERTY]
            self.matrix.add(rows, report.nodeid, report.outcome)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.matrix.at_fault(ran=self.ran) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("rows of the matrices")
        for line in self.matrix.lines(ran=self.ran):
            terminalreporter.write_line(line)
        bad = self.matrix.at_fault(ran=self.ran)
        terminalreporter.write_line(f"{len(ROWS) - len(bad)} of {len(ROWS)} rows hold; {' '.join(bad)}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", action="store_true", help="run what holds a row of the matrices; a line a row")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(*ids): holds these rows of docs/design/faults.md")
    if config.option.rows and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Report(config))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    chosen: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        rows = rows_of(item)
        item.user_properties += [(_PROPERTY, row) for row in rows]
        (chosen if rows else others).append(item)
    if config.option.rows:
        config.hook.pytest_deselected(items=others)
        items[:] = chosen


def marked(folder: Path) -> dict[str, set[str]]:
    """The test functions that hold each row, by reading the tests below a folder, without importing them."""
    found: dict[str, set[str]] = {row: set() for row in ROWS}
    for path in folder.rglob("test_*.py"):
        text = path.read_text("utf-8")
        if not re.search(r"mark\.row\(|def test_[fh]\d", text):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for row in _of_name(node.name):
                    found[row].add(node.name)
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.row":
                        for each in mark.args:
                            found[ast.literal_eval(each)].add(node.name)
    return found
