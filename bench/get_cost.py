"""CPU of a keep-alive GET of 10 KiB: our transport beside httpx2's own, and each with and without its client.

`python -m bench.get_cost [REQUESTS]`; rounds alternate, and the least of each counts. An origin is started.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import httpcore2
import httpx2
import trio

from bench.processes import helper
from downloader.net import (
    EgressPolicy,
    Route,
    Transport,
    Url,
    guarded_client,
    open_transport,
    tls_context,
)

ROUNDS = 5
TASKS = 8

Get = Callable[[], Awaitable[object]]


async def _ours(transport: Transport, url: str) -> None:
    route = Route(url=Url.parse(url), keep=TASKS, expect=lambda _what, _seconds: None)
    response = await transport.send("GET", route, [(b"Accept", b"*/*")])
    while await response.body.read() is not None:
        pass


async def _us_per_get(get: Get, count: int) -> float:
    left = count
    await get()

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await get()

    used = time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(TASKS):
            nursery.start_soon(work)
    return (time.process_time() - used) / count * 1e6


async def _run(port: int, count: int) -> None:
    url = f"http://127.0.0.1:{port}/file"
    policy = EgressPolicy.parse(["127.0.0.1"], setting="egress.downloads")
    async with AsyncExitStack() as stack:
        transport = await stack.enter_async_context(open_transport(policy, tls=tls_context()))
        ours = await stack.enter_async_context(guarded_client(transport))
        pool = await stack.enter_async_context(httpcore2.AsyncConnectionPool(max_connections=TASKS))
        limits = httpx2.Limits(max_connections=TASKS, max_keepalive_connections=TASKS)
        theirs = await stack.enter_async_context(httpx2.AsyncClient(limits=limits, trust_env=False))
        ways: dict[str, Get] = {
            "our transport, as downloads use it": partial(_ours, transport, url),
            "httpcore2's pool (h11)": partial(pool.request, "GET", url),
            "httpx2.AsyncClient on our transport, as plugins use it": partial(ours.get, url),
            "httpx2.AsyncClient on its own (h11)": partial(theirs.get, url),
        }
        least = dict.fromkeys(ways, float("inf"))
        for _ in range(ROUNDS):
            for name, get in ways.items():
                least[name] = min(least[name], await _us_per_get(get, count))
    for name, cost in least.items():
        print(f"{cost:7.0f} us  {name}")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with helper("origin") as origin:
        trio.run(_run, int(origin.first), count)


if __name__ == "__main__":
    main()
