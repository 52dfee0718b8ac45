"""A process of the service: resources, roles, stop.

Nested by lifetime: asyncio loop > store > storage, backends, connections > roles. A stop ends leasing and the
API at once; downloads in flight have until a deadline and are then handed back; callbacks drain after them;
resources close last. Timers outside of the event loop bound the duration of the whole stop, and of the end
after an error (`ExitTimer`).
"""

from __future__ import annotations

import gc
import os
import random
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import trio

from downloader import __version__
from downloader.config import Settings
from downloader.fetch import FetchSettings, disk_used_percent, open_fetcher
from downloader.lifetimes import ExitTimer
from downloader.model import Kind
from downloader.notify import open_notifiers
from downloader.observe import COUNTERS, Counters, Event, get_logger, label_lines, open_traces
from downloader.scheduler import Held, revoke, run_reaper
from downloader.service.instance import (
    RESERVE,
    Instance,
    grace_of,
    open_files,
    open_host,
    own_rates,
    running_redis,
)
from downloader.service.roles import (
    Worker,
    callbacks_worker,
    downloads_worker,
    reporting_of,
    run_stop_of_callbacks,
    run_worker,
)
from downloader.signals import stop_signals
from downloader.store import asyncio_loop, open_store

log = get_logger()

GC_THRESHOLDS = (10_000, 20, 50)
"""Higher than Python's 700, 10, 10: a few megabytes of uncollected cycles do no harm."""

LOOK_S = 1.0
"""Seconds between two checks of the disk; a check for each lease call would cost more without benefit."""

Task = Callable[..., Awaitable[None]]
"""A `run(task_status)`."""


class DiskGate:
    """Closes when the disk is `high` percent full, and opens again below `low` percent.

    `used_percent` reads how full the disk is. The call is made in a thread, because a hung mount blocks.
    While the call hangs, the gate does not change.
    """

    def __init__(self, used_percent: Callable[[], float], *, high: float, low: float) -> None:
        self._used_percent = used_percent
        self._high = high
        self._low = low
        self._open = True
        self._used = 0.0
        self._thread = trio.CapacityLimiter(1)
        """A separate limiter, so that a hung check takes no thread of Trio's default limiter."""

    def __call__(self) -> bool:
        """Whether a download may begin."""
        return self._open

    def trouble(self) -> str:
        """A line about the full disk; empty while downloads may begin."""
        if self._open:
            return ""
        used, high, low = (f"{percent:.3g}%" for percent in (self._used, self._high, self._low))
        return f"the spool's disk is {used} full (disk_high = {high}); downloads begin again below {low}"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Check the disk until cancelled; ready after the first check, or after `LOOK_S` if the check hangs.

        Raises:
            OSError: the disk cannot be checked.
        """
        with trio.move_on_after(LOOK_S):
            await self.look()
        task_status.started()
        while True:
            await trio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Check the disk once. A cancel leaves a hung thread behind.

        Raises:
            OSError: the disk cannot be checked.
        """
        used = await trio.to_thread.run_sync(self._used_percent, abandon_on_cancel=True, limiter=self._thread)
        self._used = used
        if self._open and used >= self._high:
            self._open = False
            log.error(Event.DISK_FULL, used_percent=round(used, 1), high=self._high)
        elif not self._open and used < self._low:
            self._open = True
            log.info(Event.DISK_RESUMED, used_percent=round(used, 1), low=self._low)


@dataclass(slots=True, kw_only=True)
class _Signals:
    """The state that a signal changes."""

    timer: ExitTimer
    grace_s: float
    scope: trio.CancelScope
    """Cancelled by an immediate stop. Contains the start at first, later only the roles."""
    instance: Instance | None = None
    """Set before the roles are started."""


@dataclass(slots=True)
class _Roles:
    """The opened parts that `_run_roles` runs."""

    workers: list[Worker]
    background: list[Task]
    """Run until the roles have ended."""
    api: Task | None = None


async def run_instance(
    settings: Settings,
    roles: frozenset[str],
    *,
    sockets: Sequence[socket.socket],
    handle_sigint: bool = True,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Run `roles` until a signal; `sockets` are the API's, already bound.

    Raises:
        DownloaderError: the process could not start; the text is one line.
    """
    async with trio.open_nursery() as root:
        grace_s = grace_of(settings, roles)
        signals = _Signals(scope=root.cancel_scope, grace_s=grace_s, timer=ExitTimer(grace_s))
        # Before anything else, so that no signal leaves an embedded store behind.
        await root.start(_handle_signals, signals, handle_sigint)
        async with asyncio_loop(), AsyncExitStack() as stack:
            # Ends before the stack closes the resources, so the timer runs during the close.
            with signals.timer.started_by_errors():
                instance = await _open_instance(stack, settings, roles, signals)
                parts = await _open_roles(stack, instance, sockets)
                _freeze_imports()
                await _run_roles(instance, parts, signals, started)
        log.info(Event.SERVICE_STOPPED, instance=instance.owner)
        root.cancel_scope.cancel()


async def _open_instance(
    stack: AsyncExitStack, settings: Settings, roles: frozenset[str], signals: _Signals
) -> Instance:
    """Open the resources that all roles share."""
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    label_lines(instance=owner)
    tracing = open_traces(instance=owner, version=__version__, flush_s=signals.grace_s * RESERVE / 4)
    traces = await stack.enter_async_context(tracing)
    redis = await stack.enter_async_context(running_redis(settings))
    counters = {role: Counters(COUNTERS[role]) for role in sorted(roles)}
    timed = _timing(next(iter(counters.values())))
    opened = open_store(redis, timed, hosts=settings.processor.host_limits, rates=own_rates(settings))
    store = await stack.enter_async_context(opened)
    return Instance(
        settings=settings,
        roles=roles,
        store=store,
        files=await stack.enter_async_context(open_files(settings, store)),
        owner=owner,
        rng=random.Random(),  # noqa: S311  # jitter, not secrets
        counters=counters,
        traces=traces,
        timer=signals.timer,
    )


async def _open_roles(stack: AsyncExitStack, instance: Instance, sockets: Sequence[socket.socket]) -> _Roles:
    """Open the resources of each role."""
    settings, store, files = instance.settings, instance.store, instance.files
    roles = _Roles([], [partial(run_stop_of_callbacks, instance)])
    if "processor" in instance.roles:
        downloads = open_fetcher(
            settings=FetchSettings.of(settings.processor),
            policy=settings.egress.policy("downloads"),
            store=files.put,
            spool_dir=settings.spool_dir,
            on_crawl_delay=store.set_crawl_delay,
            rng=instance.rng,
        )
        fetcher = await stack.enter_async_context(downloads)
        used_percent = partial(disk_used_percent, settings.spool_dir)
        gate = DiskGate(used_percent, high=settings.processor.disk_high, low=settings.processor.disk_low)
        roles.background += [fetcher.partials.sweep, gate.run]
        instance.troubles["disk"] = gate.trouble
        roles.workers.append(downloads_worker(instance, fetcher, gate))
    if "notifier" in instance.roles:
        host = await stack.enter_async_context(open_host(settings, files.storage))
        backends = await stack.enter_async_context(open_notifiers(settings.backends, host))
        roles.workers.append(callbacks_worker(instance, backends))
    if "api" in instance.roles:
        from downloader.service.api_role import serve_api  # noqa: PLC0415 - see that module's docstring

        roles.api = partial(serve_api, instance, sockets)
    return roles


def _timing(counters: Counters) -> Callable[[str, float], None]:
    def timed(call: str, seconds: float) -> None:
        counters.observe("store_call_seconds", seconds, call)

    return timed


def _freeze_imports() -> None:
    """Exclude imported objects from garbage collection, and collect less often.

    Examining imported objects again and again took 8% of the process's CPU under load. The objects of a job
    are freed by reference counts; cycles are rare (exceptions with tracebacks).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _run_roles(
    instance: Instance, parts: _Roles, signals: _Signals, started: Callable[[], None]
) -> None:
    """Run the roles until the end of the stop."""
    guarded = instance.timer.guarded
    wakes = {worker.work.kind: worker.wake.set for worker in parts.workers}
    if wakes:
        downloads = [worker.held for worker in parts.workers if worker.work.kind is Kind.DOWNLOAD]
        cancelled = partial(_cancelled, downloads)
        idle = {worker.work.kind: worker.wake_if_idle for worker in parts.workers}
        listen = partial(instance.store.listen, wakes, owner=instance.owner, idle=idle, cancelled=cancelled)
        parts.background.append(listen)
    async with trio.open_nursery() as background:
        signals.instance, signals.scope = instance, background.cancel_scope
        for task in parts.background:
            await background.start(guarded(task))
        async with trio.open_nursery() as roles:
            for worker in parts.workers:
                await roles.start(guarded(run_worker), instance, worker)
            if "notifier" in instance.roles:
                reap = partial(run_reaper, stop=instance.stop_callbacks)
                roles.start_soon(guarded(reap), instance.store, instance.files.delete)
            if parts.api is not None:
                await roles.start(guarded(_run_api), instance, parts.api)
            # Before the log line: when that is read, the parent knows that this child has started.
            started()
            log.info(
                Event.SERVICE_STARTED,
                instance=instance.owner,
                roles=sorted(instance.roles),
                version=__version__,
            )
        background.cancel_scope.cancel()


def _cancelled(downloads: Sequence[Held], job_id: str) -> None:
    for held in downloads:
        revoke(held, job_id)


async def _run_api(
    instance: Instance, serve: Task, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async with reporting_of(instance, "api", lambda: ({}, instance.counters["api"].series())):
        await serve(task_status=task_status)


async def _handle_signals(
    signals: _Signals,
    handle_sigint: bool,  # noqa: FBT001  # started by a nursery, which passes no keywords
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Drain at the first signal; stop at once at the second, or at a signal during the start."""
    numbers = (signal.SIGTERM, signal.SIGINT) if handle_sigint else (signal.SIGTERM,)
    with stop_signals(*numbers, within_s=signals.grace_s) as received:
        task_status.started()
        async for number in received:
            instance = signals.instance
            begun = instance is not None and instance.stop.begun
            if not begun:
                signals.timer.start()
            if instance is None or begun:
                signals.scope.cancel()
                return
            log.info(Event.SERVICE_STOPPING, signal=signal.Signals(number).name, grace_s=signals.grace_s)
            instance.stop.begin(signals.grace_s * (1 - RESERVE))
