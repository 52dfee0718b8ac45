"""Reports of an instance to the fleet: each role's facts, and its counts."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from downloader import __version__
from downloader.errors import StoreError
from downloader.observe import Event, get_logger
from downloader.store import JobStore
from downloader.tasks import background

log = get_logger()

Report = tuple[Mapping[str, Any], Mapping[str, int]]
"""Facts of a role, and its counts by series."""


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
    """Report a role every `interval_s` while the context lasts and at its end, then delete its report.

    A report has `facts` and what `more` returns. It expires if no other follows within three intervals.
    """
    facts = {
        "instance": owner,
        "role": role,
        "host": socket.gethostname(),
        "version": __version__,
        **facts,
    }

    async def report() -> None:
        now, counts = more()
        await store.report(owner, role, {**facts, **now}, 3 * interval_s, counts)

    async def keep_reporting(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        while True:
            try:
                await report()
            except StoreError as error:
                # The counts are added with the next report.
                log.warning(Event.STORE_UNAVAILABLE, reason=str(error))
            await trio.sleep(interval_s)

    async with background(keep_reporting):
        yield
    try:
        await report()
        await store.leave(owner, role)
    except StoreError as error:
        # Its last report then expires.
        log.warning(Event.STORE_UNAVAILABLE, reason=str(error))
