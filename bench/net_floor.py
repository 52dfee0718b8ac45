"""The least that S2's work can cost here: our own HTTP client and storage, without queue and states.

`python -m bench.net_floor ORIGIN_PORT SINK_PORT JOBS AGGREGATIONS LIMIT CONCURRENCY FIRST STEP ROOTDIR` does
every STEP-th job from FIRST on, like `bench.floor`, and prints the same JSON object.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import trio

from downloader.ids import new_id
from downloader.model import FileFacts, JobSpec, Outcome, Verdict
from downloader.net import (
    EgressPolicy,
    Route,
    Transport,
    Url,
    open_transport,
    tls_context,
)
from downloader.storage import Body, Storage, StorageHost
from downloader.wire import callback_body
from downloader_plugins.filesystem import open_filesystem


@dataclass(slots=True, frozen=True, kw_only=True)
class _Floor:
    origin: int
    sink: int
    limit: int
    downloads: Transport
    callbacks: Transport
    storage: Storage
    rooms: list[trio.CapacityLimiter]
    """One an aggregation."""

    async def one(self, index: int) -> None:
        number = index % len(self.rooms)
        name = f"bench-{number}"
        url = f"http://127.0.0.1:{self.origin}/file/{index:08}.png"
        async with self.rooms[number]:
            data = await _ask(self.downloads, "GET", url, keep=self.limit, aggregation=name)
            facts = FileFacts(size=len(data), sha256=hashlib.sha256(data).hexdigest(), mime_type="image/png")
            spec = JobSpec(id=new_id(0, 1), aggr_id=name, aggr_limit=self.limit, url=url)
            body = Body(size=facts.size, sha256=facts.sha256, mime_type=facts.mime_type, data=data)
            await self.storage.put(spec.storage_key(""), body)
        outcome = Outcome(verdict=Verdict.SUCCEEDED, response_code=200, file=facts)
        payload = callback_body(
            spec, outcome, attempts=1, download_url=f"http://files/{spec.storage_key('')}"
        )
        await _ask(
            self.callbacks,
            "POST",
            f"http://127.0.0.1:{self.sink}/callback",
            payload,
            keep=64,
        )


async def _ask(
    transport: Transport, method: str, url: str, content: bytes = b"", *, keep: int, aggregation: str = ""
) -> bytes:
    route = Route(url=Url.parse(url), aggregation=aggregation, keep=keep)
    response = await transport.send(method, route, [(b"Content-Type", b"application/json")], content)
    assert response.status == 200
    body = response.body
    pieces = []
    while (piece := await body.read()) is not None:
        pieces.append(piece)
    return b"".join(pieces)


async def _run(
    *, origin: int, sink: int, jobs: range, aggregations: int, limit: int, tasks: int, root: str
) -> None:
    policy = EgressPolicy.parse(["127.0.0.1"], setting="egress.downloads")
    async with AsyncExitStack() as stack:
        tls = tls_context()
        floor = _Floor(
            origin=origin,
            sink=sink,
            limit=limit,
            downloads=await stack.enter_async_context(open_transport(policy, tls=tls, max_idle=1024)),
            callbacks=await stack.enter_async_context(open_transport(policy, tls=tls)),
            storage=await stack.enter_async_context(open_filesystem({"rootdir": root}, StorageHost())),
            rooms=[trio.CapacityLimiter(limit) for _ in range(aggregations)],
        )

        async def work(indexes: Iterator[int]) -> None:
            for index in indexes:
                await floor.one(index)

        indexes = iter(jobs)
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(work, indexes)


def main() -> None:
    origin, sink, count, aggregations, limit, tasks, first, step = map(int, sys.argv[1:9])
    begun, used = time.monotonic_ns(), time.process_time()

    async def run() -> None:
        await _run(
            origin=origin,
            sink=sink,
            jobs=range(first, count, step),
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
