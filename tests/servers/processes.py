"""Test servers as processes of their own, for what must not share the tested loop."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

START_S = 20.0


@asynccontextmanager
async def origin_process() -> AsyncIterator[str]:
    """`python -m servers.origin`; yields its base URL, kills it at the end."""
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
