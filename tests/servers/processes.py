"""Processes: test servers that must not share the tested loop, and what has become of others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

START_S = 40.0

GONE_S = 10.0
"""Until a process that has to end has ended, on a busy machine."""


@asynccontextmanager
async def origin_process() -> AsyncIterator[str]:
    """`python -m servers.origin`; yields the base URL, kills the process at the end."""
    folder = str(Path(__file__).parent.parent)
    path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [sys.executable, "-m", "servers.origin", "--port", "0"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert process.stdout is not None
        with trio.fail_after(START_S):
            line = await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
        yield f"http://127.0.0.1:{int(line)}"
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def gone(*pids: int) -> bool:
    """Whether the processes end without help."""
    with trio.move_on_after(GONE_S) as scope:
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)
    return not scope.cancelled_caught


def children(pid: int) -> list[int]:
    """The child processes of all threads."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for task in tasks for word in task.read_text().split()]
