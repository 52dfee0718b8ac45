"""Opens the notifiers that the configuration names, and keeps them open."""

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
    find_cancel,
    load_factory,
    opening_failed,
)

_log = get_logger()

REOPEN_S, MAX_REOPEN_S = 1.0, 30.0
"""First and longest pause before a plugin that has ended is opened again; pauses double."""


@asynccontextmanager
async def open_notifiers(
    backends: Mapping[str, Mapping[str, Any]], host: Host, *, opening_s: float = OPENING_S
) -> AsyncIterator[Mapping[str, Notifier]]:
    """Open each backend with its section; at the end close them in reverse order, whatever happens.

    Each runs in its own task, and its host has a logger of its own. A plugin that ends because a background
    task of it raised is opened again, and affects no other; until then its deliveries raise.

    Raises:
        PluginError: on entering: a plugin is missing, cannot be imported, refuses its section, does not open
            within `opening_s` or yields an object without `deliver()`; the text begins with `backends.NAME`.
    """
    factories = {name: _factory(name) for name in backends}
    notifiers: dict[str, Notifier] = {}
    supervisors: list[_Supervisor] = []
    problem: PluginError | None = None
    async with trio.open_nursery() as nursery:
        try:
            for name, section in backends.items():
                own_host = replace(host, logger=logging.getLogger(f"downloader.backends.{name}"))
                supervisor = _Supervisor(name, factories[name], section, own_host, notifiers, opening_s)
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
    # Raised after all are closed: the nursery would put the exception in a group.
    if problem is not None:
        raise problem


@dataclass(slots=True)
class _Supervisor:
    """Keeps one plugin open; `run` is its task."""

    name: str
    factory: NotifierFactory
    section: Mapping[str, Any]
    host: Host
    notifiers: MutableMapping[str, Notifier]
    """The open notifiers by name; this one adds itself."""
    opening_s: float
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _closing: trio.Event = field(default_factory=trio.Event)
    _closed: trio.Event = field(default_factory=trio.Event)

    async def run(self, *, task_status: trio.TaskStatus[PluginError | None]) -> None:
        """Keep the plugin open until `close`; `started` gets `None`, or why it could not be opened."""
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
        """Close the plugin, within a limited time unless it ignores cancels."""
        self._closing.set()
        self._scope.deadline = trio.current_time() + within_s
        await self._closed.wait()

    async def _keep(self, opened: Callable[[], None]) -> PluginError | None:
        """Open the plugin and wait until it ends; returns why, or `None` if `close` has ended it."""
        self._scope = trio.CancelScope(deadline=trio.current_time() + self.opening_s)
        is_open = False
        text = f"did not open within {self.opening_s:g} s"
        cause: BaseException | None = None
        try:
            with self._scope:
                async with self.factory(self.section, self.host) as notifier:
                    check_interface(notifier, ("deliver",), "the plugin")
                    self.notifiers[self.name] = notifier
                    is_open, text = True, "has ended by itself"
                    # From here on only `close` ends it, after the deliveries have ended.
                    self._scope.deadline, self._scope.shield = math.inf, True
                    opened()
                    await self._closing.wait()
        except BaseException as error:  # noqa: BLE001 - a plugin can raise anything, SystemExit too
            if (cancel := find_cancel(error)) is not None:
                raise cancel from None
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
    """The notifier has ended and is not open again yet."""


class _Ended:
    """Takes the place of a notifier that has ended."""

    async def deliver(self, destination: str, payload: Payload) -> NoReturn:  # noqa: ARG002  # the protocol's
        """See `Notifier`."""
        raise PluginHasEnded(f"the backend is not open: {payload.job_id} is not sent")


def _factory(name: str) -> Any:
    try:
        return load_factory(NOTIFIERS, name)
    except PluginError as error:
        raise PluginError(f"backends.{name}: {error}") from error
