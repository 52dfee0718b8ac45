"""Has the callbacks of finished downloads wait in a store.

`python -m bench.waiting URL TYPE DESTINATION COUNT PER_DESTINATION DESTINATIONS` brings jobs to the end of
their download in the store at that URL and prints one JSON object: `ids`. With several destinations a `{}` in
the first stands for the number.
"""

from __future__ import annotations

import json
import sys
from functools import partial

import trio

from bench import fill
from downloader.config import RedisSettings
from downloader.model import Kind, Lease, callback_queue
from downloader.store import CallbackPlan, asyncio_loop, open_store

_BATCH = 64


async def run(url: str, kind: str, destination: str, *, count: int, limit: int, destinations: int) -> None:
    def plan(lease: Lease) -> CallbackPlan:
        return CallbackPlan(queue=callback_queue(kind, lease.spec.callback_dst), limit=limit)

    ids: list[str] = []
    async with asyncio_loop(), open_store(RedisSettings(url=url)) as store:
        jobs = fill.specs(
            store, count=count, aggregations=destinations, limit=_BATCH, kind=kind, to=destination
        )
        ids += await fill.submit(store, jobs)
        finished = 0
        while finished < count:
            batch = await store.lease(Kind.DOWNLOAD, "bench", _BATCH, fill.LEASE_S)
            await store.settle("bench", [fill.stored(lease, plan(lease), 0.0) for lease in batch.leases])
            finished += len(batch.leases)
    print(json.dumps({"ids": ids}))


def main() -> None:
    url, kind, destination = sys.argv[1:4]
    count, limit, destinations = map(int, sys.argv[4:])
    trio.run(partial(run, url, kind, destination, count=count, limit=limit, destinations=destinations))


if __name__ == "__main__":
    main()
