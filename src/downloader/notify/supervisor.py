"""The opening of the configured notifiers, and reopening after failures."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NoReturn

import trio

from downloader.backoff import pauses
from downloader.errors import PluginError
from downloader.lifetimes import Plugin, opened
from downloader.notify.notifier import Host, Notifier, NotifierFactory, Payload
from downloader.observe import Event, get_logger
from downloader.plugins import NOTIFIERS, OPENING_S, check_interface, load_factory

_log = get_logger()

REOPEN_S, MAX_REOPEN_S = 1.0, 30.0
"""First and longest pause before an ended plugin is opened again; pauses double."""


@asynccontextmanager
async def open_notifiers(
    backends: Mapping[str, Mapping[str, Any]], host: Host, *, opening_s: float = OPENING_S
) -> AsyncIterator[Mapping[str, Notifier]]:
    """Open all backends, and close all at the same time at the end, see `opened`.

    Each backend runs in a separate task, and the host has a separate logger for each. A plugin that ends
    because a background task raised is opened again, and does not affect other plugins. Until then deliveries
    raise `PluginHasEnded`.

    Raises:
        PluginError: on entering: a plugin is missing, cannot be imported, refuses its section, does not open
            within `opening_s` or yields an object without `deliver()`; the text begins with `backends.NAME`.
    """
    factories = {name: _factory(name) for name in backends}
    notifiers: dict[str, Notifier] = {}
    supervisors = [
        _Supervisor(name, factories[name], section, host, notifiers, opening_s=opening_s)
        for name, section in backends.items()
    ]
    async with opened(*supervisors):
        yield notifiers


class _Supervisor:
    """Keeps a plugin open, and opens an ended plugin again, in the task `run`."""

    def __init__(
        self,
        name: str,
        factory: NotifierFactory,
        section: Mapping[str, Any],
        host: Host,
        notifiers: MutableMapping[str, Notifier],
        *,
        opening_s: float,
    ) -> None:
        self._name = name
        self._notifiers = notifiers
        """The open notifiers by name; all supervisors share the mapping, and each adds one notifier."""
        self._closing = trio.Event()
        own_host = replace(host, logger=logging.getLogger(f"downloader.backends.{name}"))
        self._plugin = Plugin(
            name=f"backends.{name}",
            factory=lambda: factory(section, own_host),
            check=self._add,
            opening_s=opening_s,
        )

    async def run(self, *, task_status: trio.TaskStatus[Notifier]) -> None:
        """Keep the plugin open until `close`.

        Raises:
            PluginError: the plugin could not be opened the first time.
        """
        backoff = pauses(REOPEN_S, MAX_REOPEN_S)
        while not self._closing.is_set():
            try:
                await self._plugin.run(task_status=task_status)
            except PluginError as problem:
                if self._name not in self._notifiers:
                    raise
                _log.warning(Event.BACKEND_FAILED, backend=self._name, error=str(problem), exc_info=problem)
                self._notifiers[self._name] = _Ended()
                task_status = trio.TASK_STATUS_IGNORED
                with trio.CancelScope(shield=True), trio.move_on_after(next(backoff)):
                    await self._closing.wait()

    def close(self) -> None:
        """Begin the bounded close of the plugin."""
        self._closing.set()
        self._plugin.close()

    def _add(self, notifier: Any) -> Notifier:
        check_interface(notifier, ("deliver",), "the plugin")
        self._notifiers[self._name] = notifier
        checked: Notifier = notifier
        return checked


class PluginHasEnded(PluginError):
    """The notifier has ended and is not open again yet."""


class _Ended:
    """Replaces an ended notifier until the plugin is open again."""

    async def deliver(self, destination: str, payload: Payload) -> NoReturn:  # noqa: ARG002  # the protocol's
        """See `Notifier`."""
        raise PluginHasEnded(f"the backend is not open: {payload.job_id} is not sent")


def _factory(name: str) -> Any:
    try:
        return load_factory(NOTIFIERS, name)
    except PluginError as error:
        raise PluginError(f"backends.{name}: {error}") from error
