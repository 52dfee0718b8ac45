"""Pages of the documentation as written: files, commands, and the output of the commands."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

from readme import environment

FILE = re.compile(r"^`([\w.]+)`(, at its end)?:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)

INSTALL_S = 480.0
ANSWER_S = 120.0


def sh(command: str, folder: Path, *, seconds: float = INSTALL_S) -> str:
    """Run a command; returns the output."""
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
