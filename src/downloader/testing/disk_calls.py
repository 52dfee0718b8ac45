"""Records a plugin's calls to the disk: files opened or changed in the event loop, and synced files."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_CHANGES = frozenset({"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"})
"""Audit events of calls that change a folder."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class DiskCalls:
    """Notes the disk calls of this process while the context is open."""

    on_loop: list[str]
    """Calls in the thread that opened the context: files opened for writing, the spool file opened, folders
    changed, files synced."""
    synced: set[tuple[int, int]]
    """Device and inode of all that was synced, in any thread."""

    def __init__(self, spool: Path | None) -> None:
        self.on_loop, self.synced = [], set()
        self._spool = spool

    def __enter__(self) -> Self:
        self._loop = threading.get_ident()
        # No audit event tells of fsync. Plugins look it up in `os`, as this one module of Python has it.
        self._originals = os.fsync, os.fdatasync
        for name, original in zip(("fsync", "fdatasync"), self._originals, strict=True):
            setattr(os, name, self._noting(original))
        _install()
        _open.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _open.remove(self)
        os.fsync, os.fdatasync = self._originals

    def _noting(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def sync(file: Any) -> None:
            status = os.fstat(file if isinstance(file, int) else file.fileno())
            self.synced.add((status.st_dev, status.st_ino))
            if threading.get_ident() == self._loop:
                self.on_loop.append("os.fsync")
            original(file)

        return sync

    def audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note what Python's audit hooks are told of."""
        if threading.get_ident() != self._loop:
            return
        if event in _CHANGES:
            self.on_loop.append(event)
        elif event == "open":
            path, _, flags = arguments
            # Modules may be imported on the loop, and Trio reads from /dev: these are no files of a storage.
            if flags & _WRITING or (self._spool is not None and path == os.fspath(self._spool)):
                self.on_loop.append(f"open({path!r})")


_open: list[DiskCalls] = []
_hooked: list[bool] = []


def _install() -> None:
    """Add the audit hook, once: Python cannot remove one."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_audit)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    for calls in _open:
        calls.audited(event, arguments)
