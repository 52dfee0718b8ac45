"""Starting and watching the bench's processes: helpers, sink, and the service as its users start it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_READY_S = 30.0
_STOP_S = 30.0
_POLL_S = 0.02
_TICKS = os.sysconf("SC_CLK_TCK")
_STORES = ("valkey-server", "redis-server")


@dataclass(slots=True)
class Sink:
    """The callbacks so far, as `(received at, CLOCK_MONOTONIC in ns; body)`, and a way to wait for them."""

    port: int
    records: list[tuple[int, bytes]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def read(self, lines: IO[bytes]) -> None:
        """Take in lines until there are no more."""
        for line in lines:
            at, _, body = line.partition(b" ")
            with self.changed:
                self.records.append((int(at), body))
                self.changed.notify_all()

    def wait(self, count: int, *, silence_s: float) -> bool:
        """Wait until there are `count` callbacks; false: none has come for so long."""
        with self.changed:
            while len(self.records) < count:
                if not self.changed.wait(silence_s):
                    return False
        return True

    def clear(self) -> None:
        """Forget what has come."""
        with self.changed:
            self.records.clear()


def python(module: str, *args: object) -> list[str]:
    """The command line of one of the bench's modules."""
    return [sys.executable, "-m", f"bench.{module}", *map(str, args)]


@contextmanager
def server(module: str, *args: object) -> Iterator[tuple[int, IO[bytes]]]:
    """`(port, standard output)` of a helper that listens; ends when its input closes."""
    with subprocess.Popen(python(module, *args), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.stdout
        process.stdin.close()


@contextmanager
def sink() -> Iterator[Sink]:
    """A running callback sink."""
    with server("sink") as (port, lines):
        found = Sink(port)
        reader = threading.Thread(target=found.read, args=(lines,), daemon=True)
        reader.start()
        yield found


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Service:
    """A running `downloader run`."""

    pid: int
    port: int
    files: Path
    """Root of its file storage."""


class ServiceFailed(Exception):
    """The service did not start or did not stop; the text has its log's end."""


CONFIG = """\
[processor.filestorage]
type = "filesystem"
rootdir = "{files}"
[backends.http]
timeout = 30
[log]
level = "warning"
"""


@contextmanager
def service(folder: Path, *, processes: int) -> Iterator[Service]:
    """`downloader run` on an embedded store, from its being ready to its having stopped."""
    folder.mkdir()
    files, log, port = folder / "files", folder / "log", free_port()
    (folder / "bench.toml").write_text(CONFIG.format(files=files))
    command = [sys.executable, "-m", "downloader", "run", "-c", str(folder / "bench.toml")]
    command += ["--data-dir", str(folder / "data"), "--port", str(port), "--allow", "127.0.0.1"]
    if processes > 1:
        command += ["--processes", str(processes)]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            _await_ready(process, port, log)
            yield Service(pid=process.pid, port=port, files=files)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise ServiceFailed(f"the service had to be killed: {_tail(log)}") from None


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServiceFailed(f"the service ended with status {process.returncode}: {_tail(log)}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        with suppress(OSError):
            connection.request("GET", "/health/ready")
            if connection.getresponse().status == 200:
                return
        connection.close()
        time.sleep(_POLL_S)  # from outside there is nothing else to wait on
    raise ServiceFailed(f"the service was not ready after {_READY_S} s: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process tree has used."""

    cpu_s: float
    """Without the store."""
    store_cpu_s: float
    rss_bytes: int
    """Without the store."""

    def since(self, earlier: Usage) -> Usage:
        """CPU since then, memory as it is."""
        return Usage(
            cpu_s=self.cpu_s - earlier.cpu_s,
            store_cpu_s=self.store_cpu_s - earlier.store_cpu_s,
            rss_bytes=self.rss_bytes,
        )


def usage(pid: int) -> Usage:
    """Of a process and its descendants, from /proc: the store counted apart, ended children included."""
    facts = {int(path.name): stat for path in Path("/proc").glob("[0-9]*") if (stat := _stat(path))}
    tree, cpu, store, pages = {pid}, 0.0, 0.0, 0
    for child in sorted(facts):  # parents before children, barring a wrapped pid counter
        if facts[child][1] in tree:
            tree.add(child)
    for member in tree & facts.keys():
        name, _, ticks, rss = facts[member]
        if name.startswith(_STORES):
            store += ticks / _TICKS
        else:
            cpu += ticks / _TICKS
            pages += rss
    return Usage(cpu_s=cpu, store_cpu_s=store, rss_bytes=pages * os.sysconf("SC_PAGE_SIZE"))


def _stat(path: Path) -> tuple[str, int, int, int] | None:
    """`(name, parent, ticks of its own and its ended children, resident pages)`; see proc_pid_stat(5)."""
    try:
        text = (path / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    rest = text[text.rindex(")") + 2 :].split()
    return name, int(rest[1]), sum(map(int, rest[11:15])), int(rest[21])
