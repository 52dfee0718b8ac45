"""Has aggregations stand at their limit: one job of each is leased for a while, one waits.

`python -m bench.held URL AGGREGATIONS` prints one JSON object: `leased`.
"""

from __future__ import annotations

import json
import sys

import trio

from bench import fill
from downloader.config import RedisSettings
from downloader.model import Kind
from downloader.store import asyncio_loop, open_store

LEASE_S = 55.0
"""Less than twice `processor.lease`: for a service, a longer one is from before a clock was set back."""


async def run(url: str, aggregations: int) -> None:
    leased = 0
    async with asyncio_loop(), open_store(RedisSettings(url=url)) as store:
        jobs = fill.specs(
            store,
            count=2 * aggregations,
            aggregations=aggregations,
            limit=1,
            kind="http",
            to="http://127.0.0.1:9/callback",
        )
        await fill.submit(store, jobs)
        while found := (await store.lease(Kind.DOWNLOAD, "bench", fill.BATCH, LEASE_S)).leases:
            leased += len(found)
    print(json.dumps({"leased": leased}))


if __name__ == "__main__":
    trio.run(run, sys.argv[1], int(sys.argv[2]))
