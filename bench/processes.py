"""Starting the bench's helper processes, and reading from /proc what a process tree has used."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

_TICKS = os.sysconf("SC_CLK_TCK")
_STORES = ("valkey-server", "redis-server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Helper:
    """A running process of the bench's own; it ends when its input closes."""

    pid: int
    first: str
    """The first line it printed: its port or address, which says that it is ready."""
    lines: IO[bytes]
    """What it prints after that."""


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


def python(module: str, *args: object, interpreter: str = sys.executable) -> list[str]:
    """The command line of one of the bench's modules."""
    return [interpreter, "-m", f"bench.{module}", *map(str, args)]


@contextmanager
def helper(module: str, *args: object) -> Iterator[Helper]:
    """One of the bench's modules, ready."""
    with subprocess.Popen(python(module, *args), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            first = process.stdout.readline().decode().strip()
            yield Helper(pid=process.pid, first=first, lines=process.stdout)
        finally:
            process.stdin.close()  # before its output is closed, which a thread may be reading
            process.wait()


def answer_of(module: str, *args: object) -> dict[str, Any]:
    """The JSON object that a helper prints at its end."""
    return printed(python(module, *args))


def printed(command: list[str], folder: Path | None = None) -> dict[str, Any]:
    """The JSON object that a command prints, run in a folder; `None`: this process's."""
    output = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True).stdout
    answer: dict[str, Any] = json.loads(output)
    return answer


@contextmanager
def sink(hosts: int = 1) -> Iterator[Sink]:
    """A running callback sink on so many addresses, from `127.0.0.1` on."""
    with helper("sink", hosts) as running:
        found = Sink(int(running.first))
        reader = threading.Thread(target=found.read, args=(running.lines,), daemon=True)
        reader.start()
        yield found


def free_port() -> int:
    """A loopback port that was free a moment ago, for programs that do not tell which one they took."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


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


def usage(*pids: int) -> Usage:
    """Of processes and their descendants, from /proc: the store counted apart, ended children included."""
    facts = {int(path.name): stat for path in Path("/proc").glob("[0-9]*") if (stat := _stat(path))}
    tree, cpu, store, pages = set(pids), 0.0, 0.0, 0
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


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had so far, without its children."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024


def _stat(path: Path) -> tuple[str, int, int, int] | None:
    """`(name, parent, ticks of its own and its ended children, resident pages)`; see proc_pid_stat(5)."""
    try:
        text = (path / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    rest = text[text.rindex(")") + 2 :].split()
    return name, int(rest[1]), sum(map(int, rest[11:15])), int(rest[21])
