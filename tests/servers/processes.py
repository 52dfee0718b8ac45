"""Processes: test servers that must not share the tested loop, and what has become of others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import trio

START_S = 90.0
"""For a server on a machine that is shared with many other programs."""

GONE_S = 10.0
"""Until a process that has to end has ended, on a busy machine."""


class ServerProcess:
    """A server as a child process, which a test can freeze, kill and start again; a context manager."""

    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server; returns when the server accepts requests."""
        raise NotImplementedError

    def launch(
        self,
        words: Sequence[str],
        *,
        is_up: Callable[[], bool],
        log: Path = Path(os.devnull),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """Run a command with output to `log`; returns once `is_up`, for which an `OSError` is a no.

        Raises:
            RuntimeError: the process has ended, or was not up in time; with the log.
        """
        with log.open("ab") as output:
            self.process = subprocess.Popen(words, stdout=output, stderr=output, env=environ)
        deadline = time.monotonic() + START_S
        while True:
            with suppress(OSError):
                if is_up():
                    return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{words[0]} does not start: {log.read_text()}")
            time.sleep(0.005)

    def kill(self) -> None:
        """Kill the process, also a frozen one; `start` begins again."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def freeze(self) -> None:
        """Stop the process: the kernel accepts connections, and nothing responds until `thaw`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)  # until it has stopped

    def thaw(self) -> None:
        """Let a frozen process go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the process, and delete what it has left."""
        self.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def listens(port: int) -> bool:
    """Whether a server accepts connections on a port of 127.0.0.1; else raises `OSError`."""
    socket.create_connection(("127.0.0.1", port), timeout=1).close()
    return True


@asynccontextmanager
async def module_process(module: str, *arguments: str) -> AsyncIterator[tuple[str, int]]:
    """`python -m MODULE`, which writes a port; yields the base URL and the process id."""
    folder = str(Path(__file__).parent.parent)
    path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(  # noqa: ASYNC220 - returns at once
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert process.stdout is not None
        with trio.fail_after(START_S):
            line = await trio.to_thread.run_sync(process.stdout.readline, abandon_on_cancel=True)
        yield f"http://127.0.0.1:{int(line)}", process.pid
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@asynccontextmanager
async def origin_process() -> AsyncIterator[str]:
    """`python -m servers.origin`; yields the base URL."""
    async with module_process("servers.origin", "--port", "0") as (url, _):
        yield url


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
