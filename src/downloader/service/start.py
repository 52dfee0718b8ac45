"""Starting the service: `run_service`, in this process or in several.

With `--processes N` the parent runs the embedded store and opens the listening socket. The children do the
work, each with all roles; the kernel distributes connections among the children. A dead child is started
again after a pause. The leases of a dead child end, and other instances take over the jobs. For each signal,
the parent sends SIGTERM to all children.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from multiprocessing.context import SpawnProcess
from typing import Any

import trio

from downloader.config import EMBEDDED, ApiSettings, Settings
from downloader.errors import ConfigError, DownloaderError, first_leaf, leaves
from downloader.lifetimes import ExitTimer
from downloader.observe import Event, configure, get_logger
from downloader.service.instance import grace_of, running_redis
from downloader.service.process import run_instance
from downloader.signals import stop_signals
from downloader.store import KILLED_S, STOP_S

log = get_logger()

BACKLOG = 1024
"""Connections that wait in the kernel to be accepted."""

RESTART_S = 1.0
"""Pause before a child is started again, so that a child which cannot run costs little CPU."""


def run_service(settings: Settings, *, roles: frozenset[str], processes: int = 1) -> None:
    """Run `roles` (of `api`, `processor` and `notifier`) until a signal.

    With several `processes` each process runs all roles.

    Raises:
        ConfigError: a mistake in the configuration prevents the start (a used port, a folder, a plugin).
        DownloaderError: the service could not start, or had to end, for a different reason.
    """
    if "notifier" in roles and not settings.backends:
        raise ConfigError("a notifier needs at least one section under [backends], e.g. [backends.http]")
    if roles == {"api"} and settings.redis.url == EMBEDDED:
        raise ConfigError(
            "redis.url: an api alone needs a Redis or Valkey that it shares with a processor and a notifier;"
            " nothing would run its jobs on an embedded store"
        )
    sockets = listen(settings.api) if "api" in roles else []
    try:
        if sockets:
            # With port 0 the system has chosen a port, which the download URLs have to name.
            port = sockets[0].getsockname()[1]
            settings = settings.model_copy(update={"api": settings.api.model_copy(update={"port": port})})
        if processes > 1:
            _run(partial(_run_processes, settings, roles, processes, sockets))
        else:
            _run(partial(run_instance, settings, roles, sockets=sockets))
    finally:
        for listener in sockets:
            listener.close()


def listen(settings: ApiSettings) -> Sequence[socket.socket]:
    """The API's socket, bound and listening.

    Raises:
        ConfigError: the address is not available.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that DNS cannot hold
        reason = getattr(error, "strerror", None) or "not a host name"
        raise ConfigError(f"api.host: cannot listen on {where}: {reason}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Listen now, to detect a used port before anything is started.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"api.port: cannot listen on {where}: {error.strerror}") from error
    return [listener]


def _run(main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` with Trio; raise the first of our errors instead of an exception group."""
    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        errors = list(leaves(group))
        if all(isinstance(error, DownloaderError) for error in errors):
            raise errors[0] from None
        for error in errors:
            # Not the group: the traceback of a group ends at a depth of ten groups, before the error.
            log.exception(Event.SERVICE_FAILED, exc_info=error)
        raise DownloaderError("ended by an unexpected error; the log has its traceback") from group


async def _run_processes(
    settings: Settings, roles: frozenset[str], count: int, sockets: Sequence[socket.socket]
) -> None:
    """Run `count` children until a signal, then wait for the end of all children.

    Raises:
        DownloaderError: the embedded store or the first child of a slot could not be started.
    """
    children: dict[int, SpawnProcess] = {}
    stopping = trio.Event()
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        # Before anything else, so that no signal leaves an embedded store behind.
        within_s = grace_of(settings, roles) + STOP_S + KILLED_S
        await nursery.start(_pass_signals_on, children, stopping, within_s)
        # The interpreter waits for children when it ends. Children that hang must not keep a failed parent.
        with ExitTimer(within_s).started_by_errors():
            redis = await stack.enter_async_context(running_redis(settings))
            settings = settings.model_copy(update={"redis": redis})
            async with trio.open_nursery() as slots:
                for slot in range(count):
                    slots.start_soon(_keep_child, slot, children, stopping, (settings, roles, list(sockets)))
        await stack.aclose()
        nursery.cancel_scope.cancel()


async def _keep_child(
    slot: int, children: dict[int, SpawnProcess], stopping: trio.Event, arguments: tuple[Any, ...]
) -> None:
    """Start a slot's child, and start a new child after each end, until `stopping`.

    Raises:
        DownloaderError: the first child of the slot could not be started.
    """
    context = multiprocessing.get_context("spawn")
    has_run = False
    while not stopping.is_set():
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(theirs, *arguments), name=f"downloader-{slot}")
        # `daemon` ends the child with this process.
        child.daemon = True
        child.start()
        theirs.close()
        children[slot] = child
        await trio.lowlevel.wait_readable(ours.fileno())
        message = _received(ours)
        await trio.lowlevel.wait_readable(child.sentinel)
        child.join()
        ours.close()
        del children[slot]
        has_run = has_run or message is True
        reason = str(message) if isinstance(message, DownloaderError) else ""
        if isinstance(message, DownloaderError) and not has_run:
            raise message
        # The failure of a later child may be temporary (the store is away), so the other children go on.
        if not stopping.is_set():
            log.error(Event.SERVICE_FAILED, slot=slot, status=child.exitcode, reason=reason)
            with trio.move_on_after(RESTART_S):
                await stopping.wait()


def _received(connection: Any) -> object:
    """`True` for a started child, the error of a failed start, or `None` for a dead child."""
    try:
        return connection.recv()
    except EOFError:
        return None


async def _pass_signals_on(
    children: dict[int, SpawnProcess],
    stopping: trio.Event,
    within_s: float,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with stop_signals(signal.SIGTERM, signal.SIGINT, within_s=within_s) as received:
        task_status.started()
        async for _ in received:
            stopping.set()
            for child in list(children.values()):
                child.terminate()


def _child(parent: Any, settings: Settings, roles: frozenset[str], sockets: Sequence[socket.socket]) -> None:
    """The child's main function. SIGINT is ignored: a Ctrl-C also reaches the parent, which sends SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure(form=settings.log.format, level=settings.log.level)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_with_parent)
            await run_instance(
                settings, roles, sockets=sockets, handle_sigint=False, started=lambda: tell(parent, True)
            )
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    except* DownloaderError as group:
        error = first_leaf(group)
        # The parent needs only these two types, which decide its exit status.
        kind = ConfigError if isinstance(error, ConfigError) else DownloaderError
        tell(parent, kind(str(error)))
        raise SystemExit(1) from None


def tell(parent: Any, message: object) -> None:
    """Send what `_received` reads; ignore that the parent was killed meanwhile."""
    with suppress(BrokenPipeError):
        parent.send(message)


async def _end_with_parent() -> None:
    """Stop this child when the parent has ended, for whatever reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    await trio.lowlevel.wait_readable(parent.sentinel)
    signal.raise_signal(signal.SIGTERM)
