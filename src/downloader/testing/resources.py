"""The tasks, threads and descriptors of a process, to find those that a plugin has left behind."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import threading
from dataclasses import dataclass
from typing import Any

import trio
import trio_asyncio

_IDLE_WORKER = re.compile(r"Trio thread \d+")
"""The name of an idle thread that Trio keeps for reuse; a busy thread has another name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What this process uses at one moment."""

    tasks: frozenset[trio.lowlevel.Task]
    aio_tasks: frozenset[asyncio.Task[Any]]
    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, int, int, str]]
    """Descriptor, device, inode, kind."""

    def since(self, before: Resources) -> str:
        """What is in use now and was not in `before`, for a message; empty if nothing."""
        added = [f"the task {task.name}" for task in self.tasks - before.tasks]
        added += [f"the asyncio task {task.get_name()}" for task in self.aio_tasks - before.aio_tasks]
        added += [f"the thread {thread.name}" for thread in self.threads - before.threads]
        added += [f"the {kind} of descriptor {fd}" for fd, *_, kind in self.descriptors - before.descriptors]
        return ", ".join(sorted(added))


def resources() -> Resources:
    """What is in use now; to be called within a Trio run."""
    threads = (thread for thread in threading.enumerate() if not _IDLE_WORKER.fullmatch(thread.name))
    return Resources(
        tasks=frozenset(_tasks()),
        aio_tasks=frozenset(
            task for task in asyncio.all_tasks(trio_asyncio.current_loop.get()) if not task.done()
        ),
        threads=frozenset(threads),
        descriptors=frozenset(_descriptors()),
    )


def _tasks() -> list[trio.lowlevel.Task]:
    root = trio.lowlevel.current_root_task()
    found = [root] if root is not None else []
    for task in found:
        found += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


def _descriptors() -> list[tuple[int, int, int, str]]:
    found = []
    for name in os.listdir("/dev/fd"):  # noqa: PTH208 - names; Linux and macOS have it
        try:
            facts = os.fstat(int(name))
        except OSError:  # the descriptor of the listing itself
            continue
        kinds = {stat.S_IFSOCK: "socket", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe"}
        kind = kinds.get(stat.S_IFMT(facts.st_mode), "something")
        found.append((int(name), facts.st_dev, facts.st_ino, kind))
    return found
