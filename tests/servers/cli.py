"""Runs the real console script in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT_S = 50.0
"""Below the test's own, so that the process and what it said are reported."""

SCRIPT = Path(sys.executable).with_name("downloader")


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run came to."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line on standard error, without the program's name; fails if it is not just that."""
        assert self.err.endswith("\n"), self
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("downloader: "), self.err
        return self.err.removeprefix("downloader: ").rstrip("\n")

    def json_lines(self) -> list[dict[str, Any]]:
        """Standard output as NDJSON."""
        return [json.loads(line) for line in self.out.splitlines()]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings in it, and `extra`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DOWNLOADER_")}
    return {**clean, "COLUMNS": "100", **(extra or {})}


def run_cli(
    *arguments: str | Path,
    stdin: str = "",
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Ran:
    """Run `downloader ARGUMENTS` to its end; from a Trio test through `trio.to_thread.run_sync`."""
    done = subprocess.run(
        [SCRIPT, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment(environ),
        cwd=cwd,
        timeout=TIMEOUT_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
