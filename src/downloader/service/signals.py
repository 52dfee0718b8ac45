"""The signals that stop a process, and the timers that end it when its stop hangs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import FrameType

import trio

from downloader.observe import Event, get_logger

log = get_logger()

EXIT_MARGIN_S = 0.3
"""How long before the end of its time a process that hangs is ended by itself, with a reason in its log."""


@contextmanager
def stop_signals(*numbers: signal.Signals, within_s: float) -> Iterator[AsyncIterator[int]]:
    """Receive these signals; from the first one on, this process has `within_s` seconds left.

    The kernel counts them and then ends the process. The timer is set when the signal arrives, before any
    task runs, so it works while the event loop is blocked (by a log that nobody reads, for example) and while
    the interpreter ends. It stays set after the context. To be used in the main thread.
    """
    with trio.open_signal_receiver(*numbers) as received:
        for number in numbers:
            _set_timer_first(number, within_s)
        yield received


def _set_timer_first(number: signal.Signals, within_s: float) -> None:
    """Put setting the timer before what the signal's handler does."""
    then = signal.getsignal(number)
    assert callable(then), "Trio has just set it"

    def handle(received: int, frame: FrameType | None) -> None:
        left_s, _ = signal.getitimer(signal.ITIMER_REAL)
        if left_s == 0:
            signal.signal(signal.SIGALRM, _exit_at_once if os.getpid() == 1 else signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, within_s)
        then(received, frame)

    signal.signal(number, handle)


def _exit_at_once(number: int, _: FrameType | None) -> None:
    """For process 1 of a container, which no signal without a handler ends."""
    os._exit(128 + number)


def end_with_reason(within_s: float) -> None:
    """Have a thread end the process shortly before `within_s` seconds have passed, and log why.

    What the process has not handed back by then stays leased until the leases end.
    """

    def end() -> None:
        log.error(Event.SERVICE_STOPPED, reason="the grace period is over and something still hangs")
        os._exit(1)

    timer = threading.Timer(within_s - min(EXIT_MARGIN_S, within_s / 10), end)
    timer.daemon = True
    timer.start()
