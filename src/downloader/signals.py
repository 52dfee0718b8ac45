"""The signals that stop a process, and the kernel's timer that ends it when its stop hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import FrameType

import trio


@contextmanager
def stop_signals(*numbers: signal.Signals, within_s: float) -> Iterator[AsyncIterator[int]]:
    """Receive these signals; the kernel ends the process `within_s` seconds after the first one.

    The timer is set by the signal's handler, not by a task, so it works while the event loop is blocked (by a
    write to a full pipe, for example) and while the interpreter ends. It stays set after the context. Call
    this in the main thread.
    """
    with trio.open_signal_receiver(*numbers) as received:
        for number in numbers:
            _set_timer_first(number, within_s)
        yield received


def _set_timer_first(number: signal.Signals, within_s: float) -> None:
    """Wrap the signal's handler in one that sets the timer first."""
    then = signal.getsignal(number)
    assert callable(then), "Trio has just set it"

    def handle(received: int, frame: FrameType | None) -> None:
        set_kill_timer(within_s)
        then(received, frame)

    signal.signal(number, handle)


def set_kill_timer(within_s: float) -> None:
    """Have the kernel end the process after this time, unless such a timer runs. In the main thread only."""
    left_s, _ = signal.getitimer(signal.ITIMER_REAL)
    if left_s == 0:
        signal.signal(signal.SIGALRM, _exit_at_once if os.getpid() == 1 else signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, within_s)


def _exit_at_once(number: int, _: FrameType | None) -> None:
    """The handler for process 1 of a container, because a signal without a handler does not end it."""
    os._exit(128 + number)
