"""A disk of a test's own, small enough to be filled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted filesystem."""

    path: Path
    size_bytes: int

    def fill(self, part: float) -> Path:
        """Write a file on this part of the disk; returns the path."""
        filler = self.path / "filler"
        filler.write_bytes(b"x" * int(self.size_bytes * part))
        return filler

    def remount(self, mode: str) -> None:
        """Make the mount read-only (`ro`) or writable (`rw`)."""
        subprocess.run(["mount", "-o", f"remount,{mode}", str(self.path)], check=True)


@contextmanager
def tiny_disk(path: Path, *, kib: int) -> Iterator[Disk]:
    """A disk of this size at a new folder; only root may mount one, so the test is skipped for others."""
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("may not mount here")
    try:
        yield Disk(path, kib * 1024)
    finally:
        # Lazily, as a killed process may still be on its way out.
        subprocess.run(["umount", "--lazy", str(path)], check=True)
