"""`run_service`: the service, whole or some roles of it."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from downloader.config import ApiSettings, Settings
from downloader.errors import ConfigError, DownloaderError
from downloader.observe import Event, get_logger
from downloader.service.instance import run_instance
from downloader.service.processes import run_processes

log = get_logger()

BACKLOG = 1024


def run_service(settings: Settings, *, roles: frozenset[str], processes: int = 1) -> None:
    """Run until a signal ends it.

    Args:
        settings: the effective configuration.
        roles: some of `api`, `processor`, `notifier`.
        processes: how many processes share the work; each runs all the roles.

    Raises:
        ConfigError: the configuration keeps it from starting (a used port, a folder, a plugin).
        DownloaderError: it could not start, or had to end, for another reason.
    """
    if "notifier" in roles and not settings.backends:
        raise ConfigError("a notifier needs at least one section under [backends], e.g. [backends.http]")
    sockets = listen(settings.api) if "api" in roles else []
    try:
        if sockets:
            # Port 0 took a free one, which download URLs have to name.
            port = sockets[0].getsockname()[1]
            settings = settings.model_copy(update={"api": settings.api.model_copy(update={"port": port})})
        if processes > 1:
            _run(partial(run_processes, settings, roles, processes, sockets))
        else:
            _run(partial(run_instance, settings, roles, sockets=sockets))
    finally:
        for listener in sockets:
            listener.close()


def listen(settings: ApiSettings) -> Sequence[socket.socket]:
    """The API's socket, bound.

    Raises:
        ConfigError: the address cannot be had.
    """
    where = f"{settings.host}:{settings.port}"
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"api.host: cannot listen on {where}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Listening now, so that a port in use shows before anything is started.
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"api.port: cannot listen on {where}: {error.strerror}") from error
    return [listener]


def _run(main: Callable[[], Awaitable[None]]) -> None:
    """`trio.run`, with the first of our own errors instead of the group that nurseries make of it."""
    try:
        trio.run(main)
    except BaseExceptionGroup as group:
        ours = group.subgroup(DownloaderError)
        others = group.subgroup(lambda error: not isinstance(error, DownloaderError | BaseExceptionGroup))
        if ours is None or others is not None:
            log.exception(Event.SERVICE_FAILED)
            raise DownloaderError(
                "ended by an error that nobody expected; the log has its traceback"
            ) from group
        error: BaseException = ours
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None
