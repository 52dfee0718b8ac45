"""`downloader top` in a terminal: a separate process, controlled by a pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import pytest
import trio

from servers.api import JOB, Served
from servers.cli import SCRIPT
from servers.forked import environment

LONG = "l" * 70
"""An aggregation whose row needs more than 80 columns, and fewer than 120."""

SHOWN_AGAIN = b"\x1b[?25h"
LEFT = b"\x1b[?1049l"
"""The cursor is visible again, and the alternate screen is left."""


@dataclass
class Terminal:
    """A terminal from the user's side."""

    near: int
    """Where the user's keys go in, and what is to be shown comes out."""
    far: int
    """Standard input and output of the program."""
    seen: bytes = b""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.near, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    async def shows(self, text: bytes) -> None:
        """Wait until this has been shown, since the last such call."""
        while text not in self.seen:
            await trio.lowlevel.wait_readable(self.near)
            self.seen += os.read(self.near, 65536)
        self.seen = self.seen.partition(text)[2]

    def control(self) -> None:
        """Become the controlling terminal of a new session, so that keys send signals."""
        fcntl.ioctl(self.far, termios.TIOCSCTTY, 0)


@contextmanager
def opened() -> Iterator[Terminal]:
    near, far = os.openpty()
    try:
        terminal = Terminal(near, far)
        terminal.resize(80, 24)
        yield terminal
    finally:
        os.close(near)
        os.close(far)


@asynccontextmanager
async def top(api: Served, terminal: Terminal) -> AsyncIterator[trio.Process]:
    environ = {**environment(), "TERM": "xterm"}
    del environ["COLUMNS"]  # it would win over the terminal's size
    process = await trio.lowlevel.open_process(
        [str(SCRIPT), "top", "--api", f"http://127.0.0.1:{api.port}"],
        stdin=terminal.far,
        stdout=terminal.far,
        stderr=subprocess.STDOUT,
        env=environ,
        start_new_session=True,
        preexec_fn=terminal.control,
    )
    try:
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def submit(api: Served, aggr_id: str) -> None:
    assert (await api.client.post("/download", json=JOB | {"aggr_id": aggr_id})).status_code == 201


@pytest.mark.slow
@pytest.mark.timeout(180)  # a busy machine takes long to start the program
@pytest.mark.parametrize(("key", "status"), [(b"q", 0), (b"\x03", 130)], ids=["q", "Ctrl-C"])
async def test_it_follows_the_service_and_the_terminal_until_a_key_ends_it(
    api: Served, key: bytes, status: int
) -> None:
    await submit(api, "first.example")
    with opened() as terminal:
        before = termios.tcgetattr(terminal.far)
        async with top(api, terminal) as process:
            await terminal.shows(b"first.example")
            assert termios.tcgetattr(terminal.far) != before, "keys come one by one"
            await submit(api, LONG)
            await terminal.shows("lllll\N{HORIZONTAL ELLIPSIS}".encode())
            terminal.resize(120, 40)
            await terminal.shows(LONG.encode())
            os.write(terminal.near, key)
            await terminal.shows(SHOWN_AGAIN)
            await terminal.shows(LEFT)
            assert await process.wait() == status
            assert termios.tcgetattr(terminal.far) == before
