"""Opening the notifiers that the configuration names, and keeping them open."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import trio

from downloader.errors import PluginError
from downloader.notify.notifier import Host, Notifier, NotifierFactory, Payload
from downloader.observe import Event, get_logger
from downloader.plugins import (
    CLOSING_S,
    NOTIFIERS,
    OPENING_S,
    check_interface,
    describe,
    load_factory,
    opening_failed,
)

_log = get_logger()

REOPEN_S, MAX_REOPEN_S = 1.0, 30.0
"""Pauses before a plugin that ended by itself is opened again; they double."""


@asynccontextmanager
async def open_notifiers(
    backends: Mapping[str, Mapping[str, Any]], host: Host, *, opening_s: float = OPENING_S
) -> AsyncIterator[Mapping[str, Notifier]]:
    """Open each backend with its section; all that were opened are closed, in reverse, whatever happens.

    Each lives in a task of its own. One that ends by itself, because something in its background raised, ends
    nothing else: until it could be opened again, its deliveries raise.

    Args:
        backends: the sections by name, from `[backends]`.
        host: lent to all of them, with a logger for each.
        opening_s: how long each may take to open.

    Raises:
        PluginError: on entering, a plugin is missing, cannot be imported, refuses its section, hangs or
            yields something that is no notifier; the text begins with `backends.NAME`.
    """
    factories = {name: _factory(name) for name in backends}
    notifiers: dict[str, Notifier] = {}
    supervisors: list[_Supervisor] = []
    problem: PluginError | None = None
    async with trio.open_nursery() as nursery:
        try:
            for name, section in backends.items():
                lent = replace(host, logger=logging.getLogger(f"downloader.backends.{name}"))
                supervisor = _Supervisor(name, factories[name], section, lent, notifiers, opening_s)
                problem = await nursery.start(supervisor.run)
                if problem is not None:
                    break
                supervisors.append(supervisor)
            else:
                yield notifiers
        finally:
            # After a cancel, plugins get no time to close.
            within_s = 0.0 if trio.current_effective_deadline() == -math.inf else CLOSING_S
            with trio.CancelScope(shield=True):
                for supervisor in reversed(supervisors):
                    await supervisor.close(within_s)
    # Raised only when all are closed: on its way through a nursery it would become a group.
    if problem is not None:
        raise problem


@dataclass(slots=True)
class _Supervisor:
    """Keeps one plugin open, in its own task."""

    name: str
    factory: NotifierFactory
    section: Mapping[str, Any]
    host: Host
    notifiers: MutableMapping[str, Notifier]
    """Has the notifier while it is open."""
    opening_s: float
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _closing: trio.Event = field(default_factory=trio.Event)
    _closed: trio.Event = field(default_factory=trio.Event)

    async def run(self, *, task_status: trio.TaskStatus[PluginError | None]) -> None:
        """Start with what keeps it from opening, else `None`; then keep it open until `close`."""
        try:
            problem = await self._keep(lambda: task_status.started(None))
            if problem is not None and self.name not in self.notifiers:
                task_status.started(problem)
                return
            pause_s = REOPEN_S
            while problem is not None:
                _log.warning(Event.BACKEND_FAILED, backend=self.name, error=str(problem), exc_info=problem)
                self.notifiers[self.name] = _Ended()
                with trio.CancelScope(shield=True), trio.move_on_after(pause_s):
                    await self._closing.wait()
                    return
                pause_s = min(2 * pause_s, MAX_REOPEN_S)
                problem = await self._keep(lambda: None)
        finally:
            self._closed.set()

    async def close(self, within_s: float) -> None:
        """Close it; in bounded time, if it heeds a cancel."""
        self._closing.set()
        self._scope.deadline = trio.current_time() + within_s
        await self._closed.wait()

    async def _keep(self, opened: Callable[[], None]) -> PluginError | None:
        """Open it and wait for the end; answers why it was not `close` that ended it."""
        self._scope = trio.CancelScope(deadline=trio.current_time() + self.opening_s)
        is_open = False
        text = f"does not open: it hangs for {self.opening_s:g} s"
        cause: Exception | None = None
        try:
            with self._scope:
                async with self.factory(self.section, self.host) as notifier:
                    check_interface(notifier, ("deliver",), "the plugin")
                    self.notifiers[self.name] = notifier
                    is_open, text = True, "has ended by itself"
                    # From here on it ends when `close` says so, after those who use it.
                    self._scope.deadline, self._scope.shield = math.inf, True
                    opened()
                    await self._closing.wait()
        except Exception as error:  # noqa: BLE001 - a stranger's code can raise anything
            cause = error
            text = f"has ended by itself: {describe(error)}" if is_open else opening_failed(error)
        problem = PluginError(f"backends.{self.name}: {text}")
        problem.__cause__ = cause
        if not self._closing.is_set():
            return problem
        if cause is not None:
            _log.warning(Event.BACKEND_FAILED, backend=self.name, error="cannot be closed", exc_info=cause)
        return None


class PluginHasEnded(PluginError):
    """The notifier has ended by itself and is not open again yet."""


class _Ended:
    """In place of a notifier that has ended by itself."""

    async def deliver(self, destination: str, payload: Payload) -> NoReturn:
        """See `Notifier`."""
        raise PluginHasEnded(f"nobody delivers {payload.job_id} to {destination}")


def _factory(name: str) -> Any:
    try:
        return load_factory(NOTIFIERS, name)
    except PluginError as error:
        raise PluginError(f"backends.{name}: {error}") from error
