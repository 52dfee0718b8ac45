"""Plugins that stay open during a `with` block, and the timer that ends a process with a hanging stop.

`opened`, and `background` in `downloader.tasks`, are the only places where a nursery or a cancel scope
encloses a `yield`. `docs/design/lifetimes.md` describes the results of a failing body, a failing close, a
hanging close and a cancel.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import trio

from downloader.errors import PluginError, leaves
from downloader.observe import Event, get_logger
from downloader.plugins import CLOSING_S, OPENING_S, describe, find_cancel, opening_failed
from downloader.signals import set_kill_timer
from downloader.tasks import background

log = get_logger()

Result = TypeVar("Result")

EXIT_MARGIN_S = 0.3
"""A thread logs the reason and exits the process this long before the kernel would end the process."""


class Openable(Protocol):
    """A resource that `opened` keeps open in a separate task."""

    async def run(self, *, task_status: trio.TaskStatus[Any]) -> None:
        """Open, report the value, and stay open until `close`.

        Raises:
            PluginError: the plugin did not open, or ended by itself.
        """

    def close(self) -> None:
        """Begin the bounded close."""


@dataclass(slots=True, kw_only=True, eq=False)
class Plugin:
    """A plugin that is opened, kept open and closed in the task `run`.

    The cancel scopes that bound opening and closing are in that task, so they do not enclose the code that
    uses the plugin.
    """

    name: str
    """The table of the configuration, with which each message begins."""
    factory: Callable[[], AbstractAsyncContextManager[Any]]
    check: Callable[[Any], Any]
    """Converts the object that the factory yields to the value for the plugin's user; raises
    `PluginError`."""
    opening_s: float = OPENING_S
    closing_s: float = CLOSING_S
    _scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _closing: trio.Event = field(default_factory=trio.Event)

    async def run(self, *, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Openable`; may be called again after an exception. A failing or hanging close is logged.

        Until `close` is called, a cancel from outside does not reach an open plugin. After such a cancel the
        plugin gets no time to close.
        """
        self._scope = trio.CancelScope(deadline=trio.current_time() + self.opening_s)
        is_open = False
        text = f"did not open within {self.opening_s:g} s"
        cause: BaseException | None = None
        try:
            with self._scope:
                async with self.factory() as plugin:
                    value = self.check(plugin)
                    is_open, text = True, "has ended by itself"
                    if not self._closing.is_set():
                        self._scope.deadline, self._scope.shield = math.inf, True
                    task_status.started(value)
                    await self._closing.wait()
                    text = f"did not close within {self.closing_s:g} s"
        except BaseException as error:  # noqa: BLE001 - a plugin can raise anything, SystemExit too
            if (cancel := find_cancel(error)) is not None:
                raise cancel from None
            cause = error
            text = f"has ended by itself: {describe(error)}" if is_open else opening_failed(error)
        if not self._closing.is_set():
            raise PluginError(f"{self.name}: {text}") from cause
        if is_open and (cause is not None or self._scope.cancelled_caught):
            reason = text if cause is None else f"cannot be closed: {describe(cause)}"
            log.warning(Event.PLUGIN_NOT_CLOSED, plugin=self.name, error=reason, exc_info=cause)

    def close(self) -> None:
        """Begin the close, bounded by `closing_s`."""
        self._closing.set()
        self._scope.shield = False
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + self.closing_s)


@asynccontextmanager
async def opened(*plugins: Openable) -> AsyncIterator[list[Any]]:
    """Open plugins in the given order; yield the values; close all plugins at the same time.

    Errors are raised as `background` raises them.

    Raises:
        PluginError: a plugin did not open, and the open ones were closed; or a plugin ended by itself, and
            the body was cancelled.
    """
    async with background(partial(_keep_open, plugins), stop=partial(_close, plugins)) as values:
        yield values


def _close(plugins: Sequence[Openable]) -> None:
    for plugin in plugins:
        plugin.close()


async def _keep_open(plugins: Sequence[Openable], *, task_status: trio.TaskStatus[list[Any]]) -> None:
    problems: list[PluginError] = []
    async with trio.open_nursery() as nursery:

        async def keep(plugin: Openable, *, task_status: trio.TaskStatus[Any]) -> None:
            try:
                await plugin.run(task_status=task_status)
            except PluginError as error:
                problems.append(error)
                _close(plugins)
                if len(values) == len(plugins):
                    nursery.cancel_scope.cancel(reason=str(error))

        values: list[Any] = []
        for plugin in plugins:
            try:
                values.append(await nursery.start(keep, plugin))
            except RuntimeError:  # the task has not called `started()`
                if not problems:
                    raise
                break
        if not problems:
            task_status.started(values)
    if problems:
        raise problems[0]


class ExitTimer:
    """Ends the process `within_s` seconds after the first `start`.

    A signal starts the timer, and so does a part that ends by an error. Leases that have not been handed back
    when the process ends run until their time is up.
    """

    def __init__(self, within_s: float) -> None:
        self._within_s = within_s
        self._is_started = False
        self._error: BaseException | None = None

    def start(self, error: BaseException | None = None) -> None:
        """Start the timer unless already started; the first error is logged if the timer ends the process.

        Call this in the main thread.
        """
        for leaf in leaves(error) if error is not None else ():
            # A cancel is the result of another error, which may be reported later and then replaces it.
            if self._error is None or isinstance(self._error, trio.Cancelled):
                self._error = leaf
        if self._is_started:
            return
        self._is_started = True
        set_kill_timer(self._within_s)
        margin_s = min(EXIT_MARGIN_S, self._within_s / 10)
        timer = threading.Timer(self._within_s - margin_s, self._end)
        timer.daemon = True
        timer.start()

    @contextmanager
    def started_by_errors(self) -> Iterator[None]:
        """Start the timer when the block ends by an exception, a cancel included."""
        try:
            yield
        except BaseException as error:
            self.start(error)
            raise

    def guarded(self, task: Callable[..., Awaitable[Result]]) -> Callable[..., Awaitable[Result]]:
        """Wrap a task: an exception starts the timer before the nursery waits for the other tasks."""

        async def run(*args: Any, **options: Any) -> Result:
            with self.started_by_errors():
                return await task(*args, **options)

        return run

    def _end(self) -> None:
        error = self._error
        if isinstance(error, trio.Cancelled):
            log.error(Event.SERVICE_FAILED, reason=error.reason)
        elif error is not None:
            log.error(Event.SERVICE_FAILED, exc_info=error)
        log.error(Event.SERVICE_STOPPED, reason="the grace period is over and something still hangs")
        os._exit(1)
