"""The floor: the least that does the work of scenario S2, to compare the service with.

The same HTTP client (a small httpcore2 pool an aggregation), the same storage and the same concurrency, but
no API, no queue and no states: each task GETs, stores and POSTs one file after the other.
`python -m bench.floor ORIGIN_PORT SINK_PORT JOBS AGGREGATIONS LIMIT CONCURRENCY FIRST STEP ROOTDIR`
does every STEP-th job from FIRST on and prints one JSON object: `first_ns`, `last_ns`, `cpu_s`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpcore2
import trio

from downloader.ids import new_id
from downloader.model import FileFacts, JobSpec, Outcome, Verdict
from downloader.storage import Body, Storage, StorageHost
from downloader.wire import callback_body
from downloader_plugins.filesystem import open_filesystem


@dataclass(slots=True, frozen=True)
class _Aggregation:
    name: str
    limit: int
    room: trio.CapacityLimiter
    downloads: httpcore2.AsyncConnectionPool
    callbacks: httpcore2.AsyncConnectionPool
    """A pool of its own: a pool looks at each of its connections for each request."""


async def _one(index: int, aggregation: _Aggregation, *, origin: int, sink: int, storage: Storage) -> None:
    url = f"http://127.0.0.1:{origin}/file/{index:08}.png"
    async with aggregation.room:
        response = await aggregation.downloads.request("GET", url)
        assert response.status == 200
        data = response.content
        facts = FileFacts(size=len(data), sha256=hashlib.sha256(data).hexdigest(), mime_type="image/png")
        spec = JobSpec(id=new_id(0, 1), aggr_id=aggregation.name, aggr_limit=aggregation.limit, url=url)
        body = Body(size=facts.size, sha256=facts.sha256, mime_type=facts.mime_type, data=data)
        await storage.put(spec.storage_key(""), body)
    outcome = Outcome(verdict=Verdict.SUCCEEDED, response_code=200, file=facts)
    payload = callback_body(spec, outcome, attempts=1, download_url=f"http://files/{spec.storage_key('')}")
    answer = await aggregation.callbacks.request(
        "POST",
        f"http://127.0.0.1:{sink}/callback",
        headers={"Content-Type": "application/json"},
        content=payload,
    )
    assert answer.status == 200


async def _run(
    *, origin: int, sink: int, jobs: range, aggregations: int, limit: int, tasks: int, root: str
) -> None:
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(open_filesystem({"rootdir": root}, StorageHost()))
        groups = [
            _Aggregation(
                name=f"bench-{number}",
                limit=limit,
                room=trio.CapacityLimiter(limit),
                downloads=await stack.enter_async_context(
                    httpcore2.AsyncConnectionPool(max_connections=limit)
                ),
                callbacks=await stack.enter_async_context(
                    httpcore2.AsyncConnectionPool(max_connections=limit)
                ),
            )
            for number in range(aggregations)
        ]

        async def work(indexes: Iterator[int]) -> None:
            for index in indexes:
                await _one(index, groups[index % aggregations], origin=origin, sink=sink, storage=storage)

        indexes = iter(jobs)
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(work, indexes)


def main() -> None:
    origin, sink, count, aggregations, limit, tasks, first, step = map(int, sys.argv[1:9])
    begun, used = time.monotonic_ns(), time.process_time()
    jobs = range(first, count, step)

    async def run() -> None:
        await _run(
            origin=origin,
            sink=sink,
            jobs=jobs,
            aggregations=aggregations,
            limit=limit,
            tasks=tasks,
            root=sys.argv[9],
        )

    trio.run(run)
    result = {
        "first_ns": begun,
        "last_ns": time.monotonic_ns(),
        "cpu_s": time.process_time() - used,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
