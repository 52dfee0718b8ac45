"""`downloader top`: show live what a running service is doing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from downloader.cli.options import LOCAL, Json, Service, connect
from downloader.cli.output import write_json
from downloader.errors import DownloaderError

if TYPE_CHECKING:
    import trio
    from rich.live import Live

    from downloader.client import Client


RECONNECT_S = 2.0


def top(*, json_: Json = False, service: Service = LOCAL) -> int:
    """Watch a running service.

    Shows instances, throughput, failures and the busiest aggregations. q quits.
    Without a terminal it writes the present state and ends.

    For example:
      downloader top
      downloader top --json

    Args:
        json_: Write the present state as JSON, and end.
    """
    if not json_ and sys.stdin.isatty() and sys.stdout.isatty():
        _live(service)
        return 0
    with connect(service) as client:
        state = _present(client)
    if json_:
        write_json(state)
    else:
        from rich.console import Console

        from downloader.cli.top_view import Rates, view

        Console().print(view(state, Rates(), title=service.api, height=None))
    return 0


def _present(client: Client) -> Mapping[str, Any]:
    state = next(client.events(), None)
    if state is None:
        raise DownloaderError("the service has stopped")
    return state


def _live(service: Service) -> None:
    import termios
    import tty

    import trio
    from rich.console import Console
    from rich.live import Live

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    with connect(service) as client:  # an error at the start is printed in one line
        state = _present(client)
    try:
        tty.setcbreak(terminal, termios.TCSADRAIN)  # keep a q that was typed before
        with Live(console=Console(), screen=True, auto_refresh=False) as live:
            interrupted = trio.run(_watch, service, state, live)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
    if interrupted:
        raise KeyboardInterrupt


async def _watch(service: Service, state: Mapping[str, Any], live: Live) -> bool:
    """Draw each state until the user quits; return whether by Ctrl-C."""
    import trio

    from downloader.cli.top_view import Rates, view
    from downloader.client import AsyncClient

    rates = Rates()
    newest, problem, interrupted = state, "", False

    def show() -> None:
        width, height = live.console.size
        screen = view(newest, rates, title=service.api, height=height, width=width, problem=problem)
        live.update(screen, refresh=True)

    async def heed_signals(scope: trio.CancelScope) -> None:
        nonlocal interrupted
        # Without a KeyboardInterrupt: code that ignores exceptions, such as a finalizer, would lose it.
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGWINCH) as signals:
            async for number in signals:
                if number == signal.SIGINT:
                    interrupted = True
                    scope.cancel()
                show()

    async with (
        AsyncClient(service.api, token=service.token, retries=0) as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_quit, nursery.cancel_scope)
        nursery.start_soon(heed_signals, nursery.cancel_scope)
        while True:
            try:
                async for newest in client.events():
                    problem = ""
                    rates.add(newest, trio.current_time())
                    show()
                problem = "the service has stopped"
            except DownloaderError as error:
                problem = str(error)
            show()
            await trio.sleep(RECONNECT_S)
    return interrupted


async def _quit(scope: trio.CancelScope) -> None:
    import trio

    terminal = sys.stdin.fileno()
    while True:
        await trio.lowlevel.wait_readable(terminal)
        keys = os.read(terminal, 64)
        if not keys or b"q" in keys.lower():
            scope.cancel()
            return
