"""Ends all jobs of a store.

`python -m bench.ended URL` ends the downloads and the callbacks of all jobs in the store at that URL, and
prints one JSON object: `jobs`, how many.
"""

from __future__ import annotations

import json
import sys

import trio

from bench import fill
from downloader.config import RedisSettings
from downloader.model import CallbackOutcome, Kind, Verdict
from downloader.store import CallbackPlan, Settlement, asyncio_loop, open_store

_KEEP_S = 10_800.0
_DELIVERED = CallbackOutcome(verdict=Verdict.SUCCEEDED)


async def run(url: str) -> None:
    plan = CallbackPlan(queue="http bench", limit=fill.BATCH)
    jobs = 0
    async with asyncio_loop(), open_store(RedisSettings(url=url)) as store:
        while downloads := (await store.lease(Kind.DOWNLOAD, "bench", fill.BATCH, fill.LEASE_S)).leases:
            await store.settle("bench", [fill.stored(lease, plan, _KEEP_S) for lease in downloads])
            callbacks = (await store.lease(Kind.CALLBACK, "bench", fill.BATCH, fill.LEASE_S)).leases
            ends = [Settlement.of(lease, _DELIVERED, callback=plan, keep_s=_KEEP_S) for lease in callbacks]
            await store.settle("bench", ends)
            jobs += len(callbacks)
    print(json.dumps({"jobs": jobs}))


if __name__ == "__main__":
    trio.run(run, sys.argv[1])
