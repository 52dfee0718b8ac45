"""`run --processes N`: the parent holds the embedded store and the listening socket, children do the work.

Each child runs all roles; the kernel spreads connections over them. A child that dies is started again after
a pause; its leases end and others take its jobs over. A signal is passed on once, a second one too.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from multiprocessing.context import SpawnProcess
from typing import Any

import trio

from downloader.config import Settings
from downloader.errors import ConfigError, DownloaderError
from downloader.observe import Event, configure, get_logger
from downloader.service.instance import run_instance
from downloader.store import embedded_valkey

log = get_logger()

RESTART_S = 1.0
"""Pause before a child is started again, so that one that cannot run does not spin."""


async def run_processes(
    settings: Settings, roles: frozenset[str], count: int, sockets: Sequence[socket.socket]
) -> None:
    """Run `count` children until a signal, and see them to their end.

    Raises:
        DownloaderError: the embedded store cannot be started, or a child ended before it had started.
    """
    children: dict[int, SpawnProcess] = {}
    stopping = trio.Event()
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        # From the very first, so that a signal leaves no embedded store behind.
        await nursery.start(_pass_signals_on, children, stopping)
        if settings.redis.url == "embedded":
            url = await stack.enter_async_context(embedded_valkey(settings.data_dir))
            redis = settings.redis.model_copy(update={"url": url})
            settings = settings.model_copy(update={"redis": redis})
        async with trio.open_nursery() as slots:
            for slot in range(count):
                slots.start_soon(_keep_child, slot, children, stopping, (settings, roles, list(sockets)))
        await stack.aclose()
        nursery.cancel_scope.cancel()


async def _keep_child(
    slot: int, children: dict[int, SpawnProcess], stopping: trio.Event, arguments: tuple[Any, ...]
) -> None:
    context = multiprocessing.get_context("spawn")
    while not stopping.is_set():
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(theirs, *arguments), name=f"downloader-{slot}")
        # A child of a child does not outlive it: `daemon` ends it with this process.
        child.daemon = True
        child.start()
        theirs.close()
        children[slot] = child
        await trio.lowlevel.wait_readable(ours.fileno())
        said = _received(ours)
        await trio.lowlevel.wait_readable(child.sentinel)
        child.join()
        ours.close()
        del children[slot]
        if isinstance(said, DownloaderError):
            raise said
        if not stopping.is_set():
            log.error(Event.SERVICE_FAILED, slot=slot, status=child.exitcode)
            with trio.move_on_after(RESTART_S):
                await stopping.wait()


def _received(connection: Any) -> object:
    """`True` once the child has started, the error that kept it from it, `None` if it just died."""
    try:
        return connection.recv()
    except EOFError:
        return None


async def _pass_signals_on(
    children: dict[int, SpawnProcess],
    stopping: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        task_status.started()
        async for _ in received:
            stopping.set()
            for child in list(children.values()):
                child.terminate()


def _child(parent: Any, settings: Settings, roles: frozenset[str], sockets: Sequence[socket.socket]) -> None:
    """Runs in the child. A Ctrl-C reaches the whole group; only the parent acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure(form=settings.log.format, level=settings.log.level)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_with_parent)
            await run_instance(
                settings, roles, sockets=sockets, handle_sigint=False, started=lambda: parent.send(True)
            )
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    except* DownloaderError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        # Of our own types only the first two matter to the parent: they decide its exit status.
        kind = ConfigError if isinstance(error, ConfigError) else DownloaderError
        parent.send(kind(str(error)))
        raise SystemExit(1) from None


async def _end_with_parent() -> None:
    """The parent's death, however it came, is a stop for the child too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    await trio.lowlevel.wait_readable(parent.sentinel)
    signal.raise_signal(signal.SIGTERM)
