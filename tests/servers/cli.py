"""Runs the command line in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from servers.forked import environment, fork

TIMEOUT_S = 100.0
"""Below the test's own, so that the process and what it said are reported."""

SCRIPT = Path(sys.executable).with_name("downloader")


@dataclass(frozen=True, slots=True)
class Ran:
    """The result of a run."""

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


Run = Callable[..., Awaitable[Ran]]
"""Runs a command in a thread of this process."""


def run_cli(
    *arguments: str | Path,
    stdin: str = "",
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Ran:
    """Run `downloader ARGUMENTS` to the end, forked; from a Trio test through `trio.to_thread.run_sync`."""
    with TemporaryFile("w+") as given, TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        given.write(stdin)
        given.seek(0)
        process = fork(
            [str(word) for word in arguments],
            stdin=given.fileno(),
            stdout=out.fileno(),
            stderr=err.fileno(),
            environ=environ,
            cwd=cwd,
        )
        status = process.join(TIMEOUT_S)
        out.seek(0)
        err.seek(0)
        return Ran(status, out.read(), err.read())


def run_script(*arguments: str | Path) -> Ran:
    """Run the installed console script to the end."""
    done = subprocess.run(
        [SCRIPT, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=TIMEOUT_S,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)
