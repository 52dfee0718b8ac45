"""The plugins page, typed as it stands: its package is installed, tested, and delivers a callback."""

from __future__ import annotations

import json
import re
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from readme import environment, running, wait_for_port

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plugins.md").read_text("utf-8").partition("\n## Reference\n")[0]

FILE = re.compile(r"^`([\w.]+)`(, at its end)?:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)

INSTALL_S = 480.0
ANSWER_S = 20.0

# It installs from a package index, with pip, as it says.
pytestmark = [pytest.mark.slow, pytest.mark.plugin, pytest.mark.fault, pytest.mark.timeout(900)]


def sh(command: str, folder: Path, *, seconds: float = INSTALL_S) -> str:
    """Type a command; what it prints."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def write(folder: Path, text: str) -> None:
    """The files of a part of the page."""
    for name, at_the_end, content in FILE.findall(text):
        path = folder / name
        path.write_text(f"{path.read_text()}\n{content}" if at_the_end else content)


def line_of(log: Path, beginning: str) -> str:
    """Wait for a line that a program prints."""
    deadline = time.monotonic() + ANSWER_S
    while True:
        found = [line for line in log.read_text(errors="replace").splitlines() if line.startswith(beginning)]
        if found:
            return found[0]
        assert time.monotonic() < deadline, f"no line {beginning!r}: {log.read_text(errors='replace')}"
        time.sleep(0.02)


def test_the_page_teaches_to_write_a_notifier_and_a_storage(tmp_path: Path) -> None:
    (tmp_path / "downloader").symlink_to(ROOT)
    folder, logs = tmp_path / "downloader-hook", tmp_path / "logs"
    folder.mkdir()
    logs.mkdir()
    notifier, storage = PAGE.split("\n## Write a storage\n")
    install, test, plugins, run, receiver, origin, submit = SHELL.findall(notifier)

    write(folder, notifier)
    sh(install, folder)
    assert re.search(r"^\d+ passed", sh(test, folder), re.MULTILINE)
    assert re.search(r"\bhook\b.*\bnotifier\b", sh(plugins, folder))
    with ExitStack() as stack:
        for name, command, port in (
            ("run", run, 8123),
            ("receiver", receiver, 9123),
            ("origin", origin, 9124),
        ):
            process = stack.enter_context(running(command, folder, logs / name))
            wait_for_port(port, process, seconds=ANSWER_S)
        job_id = json.loads(sh(submit, folder))["id"]
        callback = json.loads(line_of(logs / "receiver", "done {").removeprefix("done "))
        assert (callback["job_id"], callback["success"]) == (job_id, True)
        assert callback["size"] == (folder / "pyproject.toml").stat().st_size

    write(folder, storage)
    [test_both] = SHELL.findall(storage)
    assert re.search(r"^\d+ passed", sh(test_both, folder), re.MULTILINE)
    assert re.search(r"\bdav\b.*\bstorage\b", sh(plugins, folder))


def test_the_page_has_no_block_that_nobody_tries() -> None:
    blocks = len(re.findall(r"^```\w", PAGE, re.MULTILINE))
    assert blocks == len(FILE.findall(PAGE)) + len(SHELL.findall(PAGE))
    reference = (ROOT / "docs" / "plugins.md").read_text("utf-8").partition("\n## Reference\n")[2]
    assert "```" not in reference
