"""How long tasks keep the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import thread_time

import trio

LIVE_S = 0.1
"""Within which `/health/live` has to be answered: no step of a task may take as long."""


class Steps(trio.abc.Instrument):
    """Measures how long tasks keep the loop: the CPU time of the longest step, which a busy machine does not
    change."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._began = thread_time()

    def before_task_step(self, _task: trio.lowlevel.Task) -> None:
        self._began = thread_time()

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        self.longest_s = max(self.longest_s, thread_time() - self._began)


@contextmanager
def measured_steps() -> Iterator[Steps]:
    """Measures while the context is open."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    try:
        yield steps
    finally:
        trio.lowlevel.remove_instrument(steps)
