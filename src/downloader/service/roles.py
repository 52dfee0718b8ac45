"""The roles that work on leases, and the reports of roles to the fleet."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import trio

from downloader import __version__
from downloader.errors import StoreError
from downloader.fetch import Fetcher
from downloader.notify import Bulkhead, Notifier
from downloader.observe import Counters, Event, get_logger
from downloader.scheduler import Held, Stop, Wake, Work, run_work
from downloader.service import predecessor
from downloader.service.instance import RESERVE, Instance, own_limits, shared_settings
from downloader.service.work import Callbacks, Downloads, delivery_timeout_s
from downloader.store import JobStore
from downloader.tasks import background

log = get_logger()

Report = tuple[Mapping[str, Any], Mapping[str, int]]
"""Facts of a role, and counts by series."""

LONG_S = 5.0
"""Downloads that have run for longer are in the instance's reports, with the bytes so far."""

MOST_LONG = 100
"""Most downloads in a report (the longest running), because an open page reads all reports twice a second."""

OUTAGE_LINE_S = 60.0
"""Time between two lines in the log about the same outage of the store."""

WORK_LINE_S = 60.0
"""Time between two lines in the log about the work that was done."""

DONE = (
    *("downloads_succeeded", "downloads_failed", "downloads_retried", "bytes"),
    *("callbacks_delivered", "callbacks_failed", "callbacks_retried"),
)
"""Counters in a line about the work that was done."""

LATE_S = 5.0
"""How long after the cancel a running delivery is reported as hung."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A role that works on leases."""

    role: str
    work: Work
    counters: Counters
    stop: Stop
    facts: Callable[[], Mapping[str, Any]] = dict
    """Further facts for the reports."""
    wake: Wake = field(default_factory=Wake)
    held: Held = field(default_factory=dict)

    def wake_if_idle(self) -> bool:
        """Wake the leasing task from waiting if nothing is in flight; returns whether the task was woken."""
        if self.held or not self.wake.is_awaited:
            return False
        self.wake.set()
        return True

    def report(self) -> Report:
        """The current report of the instance: facts, and counts by series."""
        facts = {**self.facts(), "counters": self.counters.snapshot()}
        return facts, {**self.counters.series(), **predecessor.growing(facts["predecessor"])}


def downloads_worker(instance: Instance, fetcher: Fetcher, disk_has_room: Callable[[], bool]) -> Worker:
    """The worker of the role `processor`."""
    settings = instance.settings
    counters = instance.counters["processor"]
    downloads = Downloads(
        fetcher=fetcher,
        settings=settings,
        counters=counters,
        traces=instance.traces,
        delete=instance.files.delete,
        own_limits=own_limits(settings),
        disk_has_room=disk_has_room,
    )
    held: Held = {}

    def facts() -> Mapping[str, Any]:
        return {
            "predecessor": downloads.workers.snapshot(counters),
            "running": running_long(held, downloads.received),
        }

    return Worker(
        role="processor",
        work=downloads.work(),
        counters=counters,
        stop=instance.stop,
        facts=facts,
        held=held,
    )


def running_long(held: Held, received: Mapping[str, int]) -> Mapping[str, int]:
    """The bytes so far of the downloads that have run for `LONG_S`, the oldest first, by job id."""
    begun_at = trio.current_time() - LONG_S
    ids = (entry.lease.id for entry in held if entry.started_at <= begun_at)
    return {job_id: received.get(job_id, 0) for job_id in islice(ids, MOST_LONG)}


def callbacks_worker(instance: Instance, backends: Mapping[str, Notifier]) -> Worker:
    """The worker of the role `notifier`."""
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
        own_limits=own_limits(settings),
        # Callbacks of downloads that end during the stop are sent before the end of the stop.
        leases_at_stop="processor" in instance.roles,
    )

    def facts() -> Mapping[str, Any]:
        bulkhead.note_late(delivery_timeout_s(settings) + LATE_S)
        return {"backends": bulkhead.health.facts(), "predecessor": predecessor.callbacks(counters)}

    return Worker(
        role="notifier", work=callbacks.work(), counters=counters, stop=instance.stop_callbacks, facts=facts
    )


async def run_worker(
    instance: Instance,
    worker: Worker,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run leased work and the reports. The end of the processor begins the stop of callbacks."""
    role = worker.role
    worker.counters.gauge("in_flight", worker.held.__len__)
    async with (
        reporting_of(instance, role, worker.report),
        background(partial(log_work, role, worker.counters)),
    ):
        instance.running[role] = True
        try:
            await run_work(
                instance.store,
                worker.work,
                owner=instance.owner,
                wake=worker.wake,
                stop=worker.stop,
                held=worker.held,
                guard=instance.timer.started_by_errors,
                task_status=task_status,
            )
        finally:
            instance.running[role] = False
        if role == "processor":
            _begin_callbacks_stop(instance)


async def log_work(
    role: str, counters: Counters, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Log what was done in each `WORK_LINE_S`, unless nothing was; runs until cancelled."""
    task_status.started()
    before = counters.snapshot()
    while True:
        await trio.sleep(WORK_LINE_S)
        now = counters.snapshot()
        done = {name: now[name] - before[name] for name in DONE if now.get(name, 0) > before.get(name, 0)}
        if done:
            log.info(Event.WORK_DONE, role=role, **done)
        before = now


@asynccontextmanager
async def reporting(
    store: JobStore,
    owner: str,
    role: str,
    more: Callable[[], Report],
    *,
    facts: Mapping[str, Any],
    interval_s: float,
) -> AsyncIterator[None]:
    """Report a role every `interval_s` while the context is open and at the end, then delete the report.

    A report has `facts`, what `more` returns, and how late the event loop was (`late_s`). The report expires
    if no other follows within three intervals.
    """
    facts = {
        "instance": owner,
        "role": role,
        "host": socket.gethostname(),
        "version": __version__,
        **facts,
    }

    async def report(late_s: float = 0.0) -> None:
        now, counts = more()
        await store.report(owner, role, {**facts, **now, "late_s": round(late_s, 3)}, 3 * interval_s, counts)

    async def keep_reporting(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        late_s, away_since, silent_until = 0.0, math.inf, 0.0
        while True:
            now = trio.current_time()
            try:
                await report(late_s)
            except StoreError as error:  # the counts are added with the next report
                away_since = min(away_since, now)
                if now >= silent_until:
                    silent_until = now + OUTAGE_LINE_S
                    log.warning(Event.STORE_UNAVAILABLE, role=role, reason=str(error))
            else:
                if away_since < math.inf:
                    log.info(Event.STORE_AVAILABLE, role=role, seconds=round(now - away_since, 1))
                away_since, silent_until = math.inf, 0.0
            due = trio.current_time() + interval_s
            await trio.sleep_until(due)
            late_s = trio.current_time() - due

    async with background(keep_reporting):
        yield
    try:
        await report()
        await store.leave(owner, role)
    except StoreError as error:
        # The last report then expires.
        log.warning(Event.STORE_UNAVAILABLE, role=role, reason=str(error))


def reporting_of(
    instance: Instance, role: str, more: Callable[[], Report]
) -> AbstractAsyncContextManager[None]:
    """Report a role of the instance while the context is open."""
    settings = instance.settings.notifier if role == "notifier" else instance.settings.processor
    facts = {"started_ms": instance.started_ms, "settings": shared_settings(instance.settings)}

    def all_facts() -> Report:
        of_role, counts = more()
        return {**of_role, "troubles": instance.present_troubles()}, counts

    return reporting(
        instance.store, instance.owner, role, all_facts, facts=facts, interval_s=settings.stats_interval
    )


async def run_stop_of_callbacks(
    instance: Instance, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Begin the stop of callbacks, at the latest shortly after the deadline of downloads."""
    task_status.started()
    await instance.stop.wait()
    if "processor" in instance.roles:
        await trio.sleep_until(instance.stop.deadline + instance.grace_s * RESERVE / 4)
    _begin_callbacks_stop(instance)


def _begin_callbacks_stop(instance: Instance) -> None:
    """Give callbacks the rest of the grace period, less the time for handing back and closing."""
    left_s = instance.stop.deadline + instance.grace_s * RESERVE / 2 - trio.current_time()
    instance.stop_callbacks.begin(max(0.0, left_s))
