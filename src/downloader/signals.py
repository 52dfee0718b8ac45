"""The signals that stop a process, the kernel timer for a hanging stop, and points at which a test kills."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType

import trio

FAILPOINT = "DOWNLOADER_FAILPOINT"
"""Environment variable with the name of the point at which to die."""


@contextmanager
def stop_signals(*numbers: signal.Signals, within_s: float) -> Iterator[AsyncIterator[int]]:
    """Receive signals; the kernel ends the process `within_s` seconds after the first signal.

    The signal's handler sets the timer, so the timer also works while the event loop is blocked (for example
    by a write to a full pipe) and while the interpreter ends. It stays set after the context. Call this in
    the main thread.
    """
    with trio.open_signal_receiver(*numbers) as received:
        for number in numbers:
            _set_timer_first(number, within_s)
        yield received


def _set_timer_first(number: signal.Signals, within_s: float) -> None:
    """Wrap the signal's handler: set the timer, then call the handler."""
    trio_handler = signal.getsignal(number)
    assert callable(trio_handler), "Trio has just set it"

    def handle(received: int, frame: FrameType | None) -> None:
        set_kill_timer(within_s)
        trio_handler(received, frame)

    signal.signal(number, handle)


def set_kill_timer(within_s: float) -> None:
    """Have the kernel end the process after `within_s`, unless a timer runs. In the main thread only."""
    left_s, _ = signal.getitimer(signal.ITIMER_REAL)
    if left_s == 0:
        signal.signal(signal.SIGALRM, _exit_at_once if os.getpid() == 1 else signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, within_s)


def _exit_at_once(number: int, _: FrameType | None) -> None:
    """The handler for process 1 of a container, which a signal without a handler does not end."""
    os._exit(128 + number)


def failpoint(name: str) -> None:
    """Kill this process with SIGKILL if `DOWNLOADER_FAILPOINT` names this point; else do nothing.

    Points: `after-lease`, `first-byte`, `before-fsync`, `after-rename`, `before-complete`, `after-complete`,
    `after-group-seal`, `after-group-complete`, `after-share`, `before-delete`, `after-delete`.
    """
    if _armed() == name:
        os.kill(os.getpid(), signal.SIGKILL)


@cache
def _armed() -> str | None:
    # Cached, because it is called several times for each job.
    return os.environ.get(FAILPOINT)
