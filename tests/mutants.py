"""Breaks the promises one at a time, by a line each, and looks whether a test notices.

Not for pytest: `nox -s mutants` runs it, `nox -s mutants -- limit clock` those whose names have one of these
words. It exits 1 if a mutant survives or no longer fits the code; then mend the test, or the entry.

Half of what is promised is kept by Lua scripts, which the mutation testers for Python do not change, and
each of their thousands of mutants would need a server. So these are chosen: lines that alone keep a promise.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import mutants_api
import mutants_client
import mutants_leases
import mutants_net
import mutants_pace
import mutants_plugins
import mutants_rows
import mutants_scheduler
import mutants_scripts
import mutants_store

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 600.0
"""For the tests of one mutant. pytest bounds each test; more means that the machine is too busy."""
OPTIONS = ("-q", "-x", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
PRELOADED = (
    "aiokafka",
    "boto3",
    "hypercorn.trio",
    "hypothesis",
    "httpx2",
    "moto.server",
    "pydantic_settings",
    "pytest_trio.plugin",
    "quart_trio",
    "redis.asyncio",
    "schemathesis.pytest.plugin",
    "trio_asyncio",
)
"""What tests import and no mutant changes."""
OF_STOPS = "tests/faults/test_stops.py"
STORE, SCHEDULER = "downloader/store", "downloader/scheduler"
OF_EMBEDDED = "tests/store/test_embedded.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change that breaks a promise."""

    name: str
    file: str
    """Below `src`."""
    old: str
    """Occurs once in the file."""
    new: str
    tests: str
    """What is to notice: arguments for pytest."""


MUTANTS = (
    Mutant(
        "tokens: a name of any type will do",
        "downloader/api/globs.py",
        "kind in allowed and allowed[kind](destination)",
        "any(allows(destination) for allows in allowed.values())",
        "tests/api/test_allow_lists.py",
    ),
    Mutant(
        "tokens: paths are not decoded",
        "downloader/api/globs.py",
        'plain = unquote(path, errors="strict")',
        "plain = path",
        "tests/api/test_allow_lists.py",
    ),
    Mutant(
        "embedded: a folder that other users can read",
        "downloader/folders.py",
        "            os.fchmod(descriptor, MODE)\n",
        "            pass\n",
        OF_EMBEDDED,
    ),
    Mutant(
        "embedded: a folder of another user is used",
        "downloader/folders.py",
        "if found.st_uid not in (os.geteuid(), 0):",
        "if False:",
        OF_EMBEDDED,
    ),
    Mutant(
        "embedded: a link is followed",
        "downloader/folders.py",
        " | os.O_NOFOLLOW",
        "",
        OF_EMBEDDED,
    ),
    Mutant(
        "disk: leasing does not ask it",
        "downloader/service/instance.py",
        "high=settings.processor.disk_high,",
        "high=101.0,",
        "tests/faults/test_disk.py",
    ),
    Mutant(
        "fsync: not of the spool file",
        "downloader/fetch/sink.py",
        "os.fsync(self._descriptor)",
        "self._descriptor",
        "tests/fetch",
    ),
    Mutant(
        "fsync: not of a copied file",
        "downloader_plugins/filesystem/tree.py",
        "            os.fsync(target)",
        "            pass",
        "tests/plugins/test_filesystem.py",
    ),
    Mutant(
        "fsync: not of folders",
        "downloader_plugins/filesystem/tree.py",
        "                os.fsync(self._open[parts])",
        "                pass",
        "tests/plugins/test_filesystem.py",
    ),
    Mutant(
        "publish: without the lease",
        "downloader_plugins/filesystem/tree.py",
        "if not body.still_ours():",
        "if False:",
        "tests/plugins/test_filesystem.py",
    ),
    *(
        Mutant(*row)
        for file in (
            mutants_api,
            mutants_client,
            mutants_store,
            mutants_leases,
            mutants_pace,
            mutants_scheduler,
            mutants_scripts,
            mutants_net,
            mutants_plugins,
            mutants_rows,
        )
        for row in file.ROWS
    ),
    Mutant(
        "stop: callbacks wait for hung downloads",
        "downloader/service/instance.py",
        "instance.stop.deadline + instance.grace_s * RESERVE / 4",
        "instance.stop.deadline + 1000",
        f"{OF_STOPS} -k disk",
    ),
    Mutant(
        "stop: only a task sets the timer",
        "downloader/service/signals.py",
        "            signal.setitimer(signal.ITIMER_REAL, within_s)\n",
        "            pass\n",
        f"{OF_STOPS} -k log",
    ),
    Mutant(
        "log: final failures are no warnings",
        "downloader/service/work.py",
        "_ALARMING = (Event.JOB_FAILED, Event.JOB_POISON, Event.CALLBACK_FAILED)",
        "_ALARMING = ()",
        "tests/unit/test_work.py -k warning",
    ),
    Mutant(
        "log: the start does not tell the page's address",
        "downloader/service/api_role.py",
        ', page=f"{api_url(settings)}/"',
        "",
        "tests/e2e/test_run.py -k without_any",
    ),
    Mutant(
        "webhooks: any secret will do",
        "downloader/webhooks.py",
        "    raise SignatureRefused(reason)",
        "    return",
        "tests/unit/test_webhooks.py",
    ),
)


def run(mutant: Mutant) -> str:
    """Try one: `killed`, `survived`, or why it could not be tried."""
    with tempfile.TemporaryDirectory(prefix="dlm-") as folder:
        source, report = Path(folder) / "src", Path(folder) / "report"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        path = source / mutant.file
        text = path.read_text("utf-8") if path.exists() else ""
        if text.count(mutant.old) != 1:
            return f"does not fit: its line stands {text.count(mutant.old)} times in src/{mutant.file}"
        path.write_text(text.replace(mutant.old, mutant.new), "utf-8")
        status = _test(source, shlex.split(mutant.tests), report)
        shown = report.read_text("utf-8", errors="replace")
    if status == 0:
        return "survived"
    # 2: `-x` has interrupted the run; 3: what the failed test left open raised a warning at the very end.
    if status not in (1, 2, 3) or "FAILED" not in shown:
        return f"could not be tried: status {status}, {shown[-1000:]}"
    first = next((line for line in shown.splitlines() if line.startswith("FAILED")), "")
    return f"killed by {first.removeprefix('FAILED ').split(' - ')[0]}"


def _test(source: Path, tests: list[str], report: Path) -> int | None:
    """Run tests with the package as it is in `source`; pytest's exit status, `None` if they do not end.

    In a child of this process, which has imported `PRELOADED`: importing takes longer than most of the tests.
    """
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for stream in (1, 2):
            os.dup2(os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), stream)
        # In front of the installed one, also for the processes that tests start.
        sys.path.insert(0, str(source))
        os.environ.update(PYTHONPATH=str(source), PYTHONDONTWRITEBYTECODE="1")
        sys.dont_write_bytecode = True
        os.chdir(ROOT)
        status = 3
        try:
            status = pytest.main([*OPTIONS, *tests])
        finally:  # also after an exception of a time limit, which must not delete the parent's folder
            try:
                sys.stdout.flush()
            finally:
                os._exit(status)
    ends = time.monotonic() + TIMEOUT_S
    while time.monotonic() < ends:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main() -> int:
    """Try all that are chosen; 1 if one is not killed."""
    parser = argparse.ArgumentParser(prog="nox -s mutants --", description=__doc__)
    parser.add_argument("words", nargs="*", help="only mutants whose name has one of these")
    words = parser.parse_args().words
    chosen = [one for one in MUTANTS if not words or any(word in one.name for word in words)]
    for module in PRELOADED:
        importlib.import_module(module)
    bad = 0
    for mutant in chosen:
        began = time.monotonic()
        result = run(mutant)
        bad += not result.startswith("killed")
        sys.stdout.write(f"{mutant.name}: {result} ({time.monotonic() - began:.0f} s)\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - bad} of {len(chosen)} killed\n")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
