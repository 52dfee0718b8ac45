"""Starts the service like `python -m downloader`, without an import each time: see `fork_server`."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import trio

SERVER = Path(__file__).with_name("fork_server.py")

_asking = threading.Lock()
"""One request at a time: the response is the next message, and there is one server."""


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without settings, and `extra`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DOWNLOADER_")}
    return {**clean, "COLUMNS": "100", **(extra or {})}


class Forked:
    """A process that the server has forked."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """The exit status, negative for a signal; `None` before the end."""
        self.stderr: trio.abc.ReceiveStream | None = None
        """The stream of standard error, if captured."""
        self._descriptor = os.pidfd_open(pid)
        self._waiting = trio.Lock()

    def send_signal(self, number: int) -> None:
        """Send the process a signal, unless the process has ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """The exit status; several tasks may wait."""
        async with self._waiting:
            if self.returncode is None:
                await trio.lowlevel.wait_readable(self._descriptor)
            return self._collect()

    def join(self, seconds: float) -> int:
        """The exit status, for callers in a thread.

        Raises:
            TimeoutError: it still runs; it is killed.
        """
        readable, _, _ = select.select([self._descriptor], [], [], seconds)
        if not readable:
            self.kill()
            select.select([self._descriptor], [], [])
        status = self._collect()
        if not readable:
            raise TimeoutError(f"still runs after {seconds} s")
        return status

    def _collect(self) -> int:
        if self.returncode is None:
            self.returncode = _ask({"ended": self.pid})
            os.close(self._descriptor)
        return self.returncode


def fork(
    arguments: Sequence[str],
    *,
    module: str = "downloader",
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Forked:
    """Start `python -m MODULE ARGUMENTS` in a session of its own, with these descriptors; the null device's
    where absent. They stay the caller's.
    """
    request = {
        "module": module,
        "arguments": list(arguments),
        "environ": environment(environ),
        "cwd": str(cwd or Path.cwd()),
    }
    null = os.open(os.devnull, os.O_RDWR)
    try:
        return Forked(_ask(request, [null if one is None else one for one in (stdin, stdout, stderr)]))
    finally:
        os.close(null)


async def start(arguments: Sequence[str], *, environ: Mapping[str, str] | None = None) -> Forked:
    """`fork`, from Trio, with standard error to be read."""
    ours, theirs = os.pipe()
    try:
        begin = partial(fork, arguments, stderr=theirs, environ=environ)
        forked = await trio.to_thread.run_sync(begin)
    finally:
        os.close(theirs)
    forked.stderr = trio.lowlevel.FdStream(ours)
    return forked


def _ask(request: Mapping[str, Any], descriptors: Sequence[int] = ()) -> int:
    with _asking:
        control = _server()
        socket.send_fds(control, [json.dumps(request).encode()], descriptors)
        answer = control.recv(64)
    assert answer, "the fork server has ended"
    return int(answer)


@cache
def _server() -> socket.socket:
    """The socket to the server of this process, which ends with the process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=theirs.fileno(), env=environment(), start_new_session=True
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours
