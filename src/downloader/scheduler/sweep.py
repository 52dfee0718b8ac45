"""Hands back the tasks of instances that have died."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio

from downloader.model import Kind
from downloader.observe import Event, get_logger
from downloader.store import JobStore, StoreUnavailable

log = get_logger()

SWEEPS_PER_LEASE = 10

SWEEP_BATCH = 100
"""Tasks per call and shard at most, so that a script takes a few milliseconds."""


async def sweep_leases(store: JobStore, kind: Kind, lease_s: float, swept: Callable[[int], None]) -> None:
    """Make the tasks pending again whose lease has ended. Runs until cancelled.

    A sweep goes on until it has found all of them, as one process may have held thousands. `swept` is called
    with the number that each call to the store has found.
    """
    found = 0
    while True:
        if found < SWEEP_BATCH:
            # Jitter keeps a fleet that was started at once from sweeping at once.
            await trio.sleep(lease_s / SWEEPS_PER_LEASE * random.uniform(0.5, 1))  # noqa: S311  # no secret
        found = 0
        try:
            ids = await store.sweep(kind, SWEEP_BATCH)
        except StoreUnavailable as error:
            log.warning(Event.STORE_UNAVAILABLE, kind=kind, reason=str(error))
            continue
        for job_id in ids:
            log.warning(Event.SWEEP_RECOVERED, kind=kind, job_id=job_id)
        found = len(ids)
        swept(found)
