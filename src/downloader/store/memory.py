"""How much memory this process and its children may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the groups of processes whose memory is limited: containers, systemd's services."""


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
