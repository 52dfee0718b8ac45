"""Changes the code in one place at a time, and looks whether a test notices: `nox -s mutants`.

Not for pytest. The changes are made from the code as it stands: of Python by the operators of cosmic-ray and
by dropping statements, of the store's Lua scripts by `lua_mutants`. All changes of a package would take days,
so a run takes a random sample of each path's. It prints the score and a diff for each that survived:

    nox -s mutants -- --sample 40 src/downloader/net src/downloader/store/lua/submit.lua

A survivor is a missing test or a change without an effect, which a person has to judge. The promises to look
at first are in `docs/design/mutants.md`.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import MutationVisitor
from cosmic_ray.plugins import get_operator

import lua_mutants

ROOT = Path(__file__).parents[1]
CORE = Path("src/downloader")
PACKAGES = ("store", "scheduler", "net", "fetch")

TESTS: dict[str, tuple[str, ...]] = {
    "store": ("tests/store", "tests/scheduler"),
    "scheduler": ("tests/scheduler", "tests/store/test_reporting.py", "tests/e2e/test_fleet.py"),
    "net": ("tests/net", "tests/fetch/test_redirects.py", "tests/fetch/test_proxy.py"),
    "fetch": ("tests/fetch", "tests/unit/test_retry.py", "tests/unit/test_robots_rules.py"),
}
"""By package: what is to notice a change of it. `--tests` names others."""

COMPARISONS = (
    "Lt_LtE",
    "LtE_Lt",
    "Gt_GtE",
    "GtE_Gt",
    "Eq_NotEq",
    "NotEq_Eq",
    "Is_IsNot",
    "IsNot_Is",
    "Lt_Gt",
    "Gt_Lt",
)
ARITHMETIC = (
    "Add_Sub",
    "Sub_Add",
    "Mul_Div",
    "Div_Mul",
    "FloorDiv_Mul",
    "Mod_Mul",
    "BitAnd_BitOr",
    "BitOr_BitAnd",
)
OPERATORS = (
    *(f"ReplaceComparisonOperator_{pair}" for pair in COMPARISONS),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ARITHMETIC),
    *("ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue"),
    *("ReplaceUnaryOperator_Delete_Not", "AddNot", "NumberReplacer", "ZeroIterationForLoop"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ExceptionReplacer"),
)
"""Of cosmic-ray's; the others make much the same changes, or ones that no import survives."""

TEST_TIMEOUT_S = 60
BASE_S, TIMES_SLOWER = 60.0, 3.0
"""A mutant's tests may take so much longer than those of the code as it stands; then they hang."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed file."""

    path: Path
    """Below the root."""
    source: str

    def diff(self) -> str:
        before = (ROOT / self.path).read_text("utf-8").splitlines()
        lines = difflib.unified_diff(
            before, self.source.splitlines(), str(self.path), str(self.path), "", "", 1, ""
        )
        return "\n".join(lines)


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Each change of a file that changes what it does when it runs."""
    source = (ROOT / path).read_text("utf-8")
    if path.suffix == ".lua":
        yield from (Mutant(path, changed) for changed in dict.fromkeys(lua_mutants.mutants(source)))
        return
    original = _executed(source)
    for changed in dict.fromkeys((*_by_operators(source), *_without_statements(source))):
        if _executed(changed) != original:
            yield Mutant(path, changed)


def _by_operators(source: str) -> Iterator[str]:
    for name in OPERATORS:
        for occurrence in range(sys.maxsize):
            # A visitor changes the tree that it is given, so each has its own.
            visitor = MutationVisitor(occurrence, get_operator(f"core/{name}")())
            tree = visitor.walk(get_ast(source))
            if not visitor.mutation_applied:
                break
            yield tree.get_code()


def _without_statements(source: str) -> Iterator[str]:
    """The source without one of its calls and assignments to attributes or items."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await)
        is_write = isinstance(node, ast.Assign | ast.AugAssign) and not isinstance(
            _target(node), ast.Name | ast.Tuple
        )
        if (is_call or is_write) and isinstance(node, ast.stmt):
            indent = " " * node.col_offset
            yield "".join([*lines[: node.lineno - 1], f"{indent}pass\n", *lines[node.end_lineno :]])


def _target(node: ast.Assign | ast.AugAssign) -> ast.expr:
    return node.targets[0] if isinstance(node, ast.Assign) else node.target


def _executed(source: str) -> str | None:
    """What is left of a module without its annotations; None if it does not compile."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
    return ast.dump(tree)


def files(paths: Sequence[Path]) -> Iterator[Path]:
    """The modules and scripts at and below the paths, which are below the root."""
    for path in paths:
        whole = ROOT / path
        found = sorted(whole.rglob("*")) if whole.is_dir() else [whole]
        yield from (each.relative_to(ROOT) for each in found if each.suffix in (".py", ".lua"))


def tests_of(path: Path) -> tuple[str, ...]:
    """The tests that are to notice a change of a file.

    Raises:
        SystemExit: no tests are known for it.
    """
    package = path.relative_to(CORE).parts[0] if path.is_relative_to(CORE) else ""
    if package not in TESTS:
        raise SystemExit(f"{path}: name its tests by --tests")
    return TESTS[package]


def run(folder: Path, tests: Sequence[str], limit_s: float) -> bool:
    """Whether the tests pass in a copy of the checkout; a run that is not over in time does not."""
    # Without bytecode, as that of a changed module of the same second and size would pass for current.
    environment = os.environ | {
        "PYTHONPATH": str(folder / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DOWNLOADER_TEST_EXAMPLES": "40",
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-o",
        f"timeout={TEST_TIMEOUT_S}",
    ]
    with subprocess.Popen(
        [*command, *tests],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(limit_s) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def survivors(chosen: Sequence[Mutant], tests: Sequence[str], *, jobs: int) -> Iterator[Mutant]:
    """The mutants with which the tests pass.

    Raises:
        SystemExit: they fail with the code as it stands.
    """
    with tempfile.TemporaryDirectory(prefix="mutants-") as name, ThreadPoolExecutor(jobs) as threads:
        ignored = shutil.ignore_patterns(".git", ".venv", ".nox", ".*_cache", "__pycache__", "_build")
        folders: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            folders.put(shutil.copytree(ROOT, Path(name, str(number)), ignore=ignored))

        def survives(mutant: Mutant) -> bool:
            folder = folders.get()
            try:
                (folder / mutant.path).write_text(mutant.source, "utf-8")
                return run(folder, tests, limit_s)
            finally:
                shutil.copyfile(ROOT / mutant.path, folder / mutant.path)
                folders.put(folder)

        started = time.monotonic()
        if not run(Path(name, "0"), tests, sys.maxsize):
            raise SystemExit(f"these fail without a change: {' '.join(tests)}")
        limit_s = BASE_S + TIMES_SLOWER * (time.monotonic() - started)
        for mutant, lives in zip(chosen, threads.map(survives, chosen), strict=True):
            if lives:
                yield mutant


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, default=[CORE / package for package in PACKAGES])
    parser.add_argument("--tests", nargs="+", help="what is to notice, in place of the package's tests")
    parser.add_argument("--sample", type=int, default=20, help="how many changes of each path (20)")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 10_000, help="which (other ones each time)"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at once (one a core)")
    options = parser.parse_args()
    for path in options.paths:
        every = [mutant for file in files([path]) for mutant in mutants_of(file)]
        chosen = random.Random(options.seed).sample(every, min(options.sample, len(every)))
        alive = list(survivors(chosen, options.tests or tests_of(path), jobs=options.jobs))
        killed = len(chosen) - len(alive)
        share = f"{100 * killed // max(len(chosen), 1)} %"
        sys.stdout.write(
            f"{path}: {killed} of {len(chosen)} killed ({share}), of {len(every)}; seed {options.seed}\n"
        )
        sys.stdout.writelines(f"\n```diff\n{mutant.diff()}\n```\n" for mutant in alive)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
