"""Has the callbacks of finished downloads wait in a store.

`python -m bench.waiting URL TYPE DESTINATION COUNT PER_DESTINATION` brings jobs to the end of their download
in the store at that URL and prints one JSON object: `ids`.
"""

from __future__ import annotations

import json
import sys

import trio

from bench import fill
from downloader.config import RedisSettings
from downloader.model import Kind, callback_group
from downloader.store import CallbackPlan, asyncio_loop, open_store

_BATCH = 64


async def run(url: str, kind: str, destination: str, count: int, limit: int) -> None:
    plan = CallbackPlan(group=callback_group(kind, destination), limit=limit)
    ids: list[str] = []
    async with asyncio_loop(), open_store(RedisSettings(url=url)) as store:
        jobs = fill.specs(store, count=count, aggregations=1, limit=_BATCH, kind=kind, to=destination)
        ids += await fill.submit(store, jobs)
        finished = 0
        while finished < count:
            batch = await store.lease(Kind.DOWNLOAD, "bench", _BATCH, fill.LEASE_S)
            await store.settle("bench", [fill.stored(lease, plan, 0.0) for lease in batch.leases])
            finished += len(batch.leases)
    print(json.dumps({"ids": ids}))


def main() -> None:
    url, kind, destination, count, limit = sys.argv[1:6]
    trio.run(run, url, kind, destination, int(count), int(limit))


if __name__ == "__main__":
    main()
