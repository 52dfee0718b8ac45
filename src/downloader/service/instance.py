"""One process of the service: its resources, its roles, its stop.

Nested by lifetime: asyncio loop > store > storage, backends, connections > roles. A stop ends leasing and the
API at once; downloads in flight have until a deadline and are then handed back; callbacks drain after them;
resources close last. Timers outside of the event loop bound the duration of the whole stop.
"""

from __future__ import annotations

import gc
import os
import random
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from downloader import __version__
from downloader.config import Settings
from downloader.fetch import Fetcher, FetchSettings, disk_used_percent, open_fetcher
from downloader.lifetimes import ExitTimer
from downloader.model import Kind
from downloader.notify import Bulkhead, Notifier, open_notifiers
from downloader.observe import COUNTERS, Counters, Event, get_logger, open_traces
from downloader.scheduler import Held, Stop, Wake, Work, revoke, run_reaper, run_work
from downloader.service import predecessor
from downloader.service.disk import DiskGate
from downloader.service.reports import Report, reporting
from downloader.service.resources import open_files, open_host, running_redis
from downloader.service.shared import RESERVE, Instance, grace_of
from downloader.service.work import Callbacks, Downloads, delivery_timeout_s
from downloader.signals import stop_signals
from downloader.store import asyncio_loop, open_store

log = get_logger()

ROLES = ("api", "processor", "notifier")

GC_THRESHOLDS = (10_000, 20, 50)
"""Instead of 700, 10, 10: a few megabytes of cycles may wait."""

Serve = Callable[..., Awaitable[None]]
"""`serve_api` with all but its `task_status`."""

LATE_S = 5.0
"""How long after its cancel a delivery is reported as one that does not end."""


@dataclass(slots=True, kw_only=True)
class _Signals:
    """What a signal acts on."""

    grace_s: float
    scope: trio.CancelScope
    """Cancelled by an immediate stop: first it contains the start, later the roles alone."""
    timer: ExitTimer
    instance: Instance | None = None
    """Once its roles are being started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Worker:
    """A role that works on leases."""

    role: str
    work: Work
    counters: Counters
    stop: Stop
    facts: Callable[[], Mapping[str, Any]] = dict
    """More for its reports."""
    wake: Wake = field(default_factory=Wake)
    held: Held = field(default_factory=dict)

    def report(self) -> Report:
        """The current report of the instance: its facts, and its counts by series."""
        facts = {**self.facts(), "counters": self.counters.snapshot()}
        return facts, {**self.counters.series(), **predecessor.growing(facts["predecessor"])}


async def run_instance(
    settings: Settings,
    roles: frozenset[str],
    *,
    sockets: Sequence[socket.socket],
    handle_sigint: bool = True,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Run these roles until a signal; `sockets` are the API's, already bound.

    Raises:
        DownloaderError: what kept it from starting, in one line.
    """
    async with trio.open_nursery() as guard:
        grace_s = grace_of(settings, roles)
        signals = _Signals(scope=guard.cancel_scope, grace_s=grace_s, timer=ExitTimer(grace_s))
        # Before anything else, so that no signal leaves an embedded store behind.
        await guard.start(_handle_signals, signals, handle_sigint)
        with signals.timer.started_by_errors():
            await _run_with(settings, roles, sockets, signals, started)
        guard.cancel_scope.cancel()


async def _run_with(
    settings: Settings,
    roles: frozenset[str],
    sockets: Sequence[socket.socket],
    signals: _Signals,
    started: Callable[[], None],
) -> None:
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    flush_s = signals.grace_s * RESERVE / 4
    async with asyncio_loop(), AsyncExitStack() as stack:
        with signals.timer.started_by_errors():
            tracing = open_traces(instance=owner, version=__version__, flush_s=flush_s)
            traces = await stack.enter_async_context(tracing)
            redis = await stack.enter_async_context(running_redis(settings))
            counters = {role: Counters(COUNTERS[role]) for role in sorted(roles)}
            store = await stack.enter_async_context(
                open_store(
                    redis, _timing(next(iter(counters.values()))), hosts=settings.processor.host_limits
                )
            )
            files = await stack.enter_async_context(open_files(settings))
            instance = Instance(
                settings=settings,
                roles=roles,
                store=store,
                files=files,
                owner=owner,
                rng=random.Random(),  # noqa: S311  # jitter, not secrets
                counters=counters,
                traces=traces,
            )
            fetcher = backends = None
            if "processor" in roles:
                downloads = open_fetcher(
                    settings=FetchSettings.of(settings.processor),
                    policy=settings.egress.policy("downloads"),
                    store=files.put,
                    spool_dir=settings.spool_dir,
                    on_crawl_delay=store.set_crawl_delay,
                    rng=instance.rng,
                )
                fetcher = await stack.enter_async_context(downloads)
            if "notifier" in roles:
                host = await stack.enter_async_context(open_host(settings, files.storage))
                backends = await stack.enter_async_context(open_notifiers(settings.backends, host))
            serve: Serve | None = None
            if "api" in roles:
                from downloader.service.api_role import serve_api  # noqa: PLC0415 - see that module's docstring

                serve = partial(serve_api, instance, sockets)
            _freeze_imports()
            await _run_roles(instance, fetcher, backends, serve, signals=signals, started=started)
        log.info(Event.SERVICE_STOPPED, instance=instance.owner)


def _timing(counters: Counters) -> Callable[[str, float], None]:
    def timed(call: str, seconds: float) -> None:
        counters.observe("store_call_seconds", seconds, call)

    return timed


def _freeze_imports() -> None:
    """Take what was imported out of garbage collection, and collect less often.

    Examining these objects again and again took 8% of the process's CPU under load. A job's objects are freed
    by reference counts; cycles are rare (exceptions with their tracebacks).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _run_roles(
    instance: Instance,
    fetcher: Fetcher | None,
    backends: Mapping[str, Notifier] | None,
    serve: Serve | None,
    *,
    signals: _Signals,
    started: Callable[[], None],
) -> None:
    workers: list[_Worker] = []
    background_tasks: list[Callable[..., Awaitable[None]]] = [partial(_stop_callbacks, instance)]
    if fetcher is not None:
        processor = instance.settings.processor
        used_percent = partial(disk_used_percent, instance.settings.spool_dir)
        gate = DiskGate(used_percent, high=processor.disk_high, low=processor.disk_low)
        background_tasks += [fetcher.parts.sweep, gate.run]
        workers.append(_downloads(instance, fetcher, gate))
    if backends is not None:
        workers.append(_callbacks(instance, backends))
    wakes = {worker.work.kind: worker.wake.set for worker in workers}

    async with trio.open_nursery() as background:
        signals.instance, signals.scope = instance, background.cancel_scope
        for task in background_tasks:
            await background.start(signals.timer.guarded(task))
        if wakes:
            downloads = [worker.held for worker in workers if worker.work.kind is Kind.DOWNLOAD]
            listen = partial(instance.store.listen, wakes, cancelled=partial(_cancelled, downloads))
            await background.start(signals.timer.guarded(listen))
        async with trio.open_nursery() as roles:
            for worker in workers:
                await roles.start(signals.timer.guarded(_run_worker), instance, worker)
            if "notifier" in instance.roles:
                reap = partial(run_reaper, stop=instance.stop_callbacks)
                roles.start_soon(signals.timer.guarded(reap), instance.store, instance.files.delete)
            if serve is not None:
                await roles.start(signals.timer.guarded(_run_api), instance, serve)
            log.info(
                Event.SERVICE_STARTED,
                instance=instance.owner,
                roles=sorted(instance.roles),
                version=__version__,
            )
            started()
        background.cancel_scope.cancel()


def _cancelled(downloads: Sequence[Held], job_id: str) -> None:
    for held in downloads:
        revoke(held, job_id)


def _downloads(instance: Instance, fetcher: Fetcher, disk_has_room: Callable[[], bool]) -> _Worker:
    settings = instance.settings
    counters = instance.counters["processor"]
    downloads = Downloads(
        fetcher=fetcher,
        settings=settings,
        counters=counters,
        traces=instance.traces,
        delete=instance.files.delete,
        disk_has_room=disk_has_room,
    )
    return _Worker(
        role="processor",
        work=downloads.work(),
        counters=counters,
        stop=instance.stop,
        facts=lambda: {"predecessor": downloads.workers.snapshot(counters)},
    )


def _callbacks(instance: Instance, backends: Mapping[str, Notifier]) -> _Worker:
    settings = instance.settings
    counters = instance.counters["notifier"]
    bulkhead = Bulkhead(backends, slots=settings.notifier.concurrency, rng=instance.rng)
    instance.bulkhead = bulkhead
    counters.gauge("backends_unhealthy", lambda: bulkhead.health.unhealthy)
    callbacks = Callbacks(
        backends=backends,
        settings=settings,
        counters=counters,
        traces=instance.traces,
        bulkhead=bulkhead,
        rng=instance.rng,
        download_url=instance.files.url,
        # So that callbacks of downloads that end during the stop are sent before it ends.
        leases_at_stop="processor" in instance.roles,
    )

    def facts() -> Mapping[str, Any]:
        bulkhead.note_late(delivery_timeout_s(settings) + LATE_S)
        return {"backends": bulkhead.health.facts(), "predecessor": predecessor.callbacks(counters)}

    return _Worker(
        role="notifier", work=callbacks.work(), counters=counters, stop=instance.stop_callbacks, facts=facts
    )


async def _run_worker(
    instance: Instance,
    worker: _Worker,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run leased work and its reports. When the processor has ended, the stop of callbacks begins."""
    role = worker.role
    worker.counters.gauge("in_flight", worker.held.__len__)
    async with _reporting(instance, role, worker.report):
        instance.running[role] = True
        try:
            await run_work(
                instance.store,
                worker.work,
                owner=instance.owner,
                wake=worker.wake,
                stop=worker.stop,
                held=worker.held,
                task_status=task_status,
            )
        finally:
            instance.running[role] = False
        if role == "processor":
            _begin_callbacks_stop(instance)


def _reporting(
    instance: Instance, role: str, more: Callable[[], Report]
) -> AbstractAsyncContextManager[None]:
    settings = instance.settings.notifier if role == "notifier" else instance.settings.processor
    facts = {"started_ms": instance.started_ms}
    return reporting(
        instance.store, instance.owner, role, more, facts=facts, interval_s=settings.stats_interval
    )


async def _run_api(
    instance: Instance, serve: Serve, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async with _reporting(instance, "api", lambda: ({}, instance.counters["api"].series())):
        await serve(task_status=task_status)


async def _stop_callbacks(
    instance: Instance, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Begin the stop of callbacks; with downloads here, at the latest a little after their deadline."""
    task_status.started()
    await instance.stop.wait()
    if "processor" in instance.roles:
        await trio.sleep_until(instance.stop.deadline + instance.grace_s * RESERVE / 4)
    _begin_callbacks_stop(instance)


def _begin_callbacks_stop(instance: Instance) -> None:
    """Callbacks get the rest of the grace period, less the time for handing back and closing."""
    left_s = instance.stop.deadline + instance.grace_s * RESERVE / 2 - trio.current_time()
    instance.stop_callbacks.begin(max(0.0, left_s))


async def _handle_signals(
    signals: _Signals,
    handle_sigint: bool,  # noqa: FBT001  # started by a nursery, which passes no keywords
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """First signal: drain. Second, or one during the start: stop at once."""
    wanted = (signal.SIGTERM, signal.SIGINT) if handle_sigint else (signal.SIGTERM,)
    with stop_signals(*wanted, within_s=signals.grace_s) as received:
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
