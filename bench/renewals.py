"""How long the renewal of 256 leases takes while APIs submit jobs in bulk (S18).

`python -m bench.renewals [--streams 64] [--apis 2] [--seconds 10]`. Each stream submits 500 jobs at a time
without a pause; each API is a process. The renewals come from a process of their own, one each 50 ms.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles

import trio

from bench import fill
from bench.processes import helper
from downloader.config import RedisSettings
from downloader.model import Kind, Lease
from downloader.store import JobStore, Settled, asyncio_loop, open_store

LEASES = 256
ROWS = 500
PAUSE_S = 0.05
OTHER = {"limit": 1000, "kind": "http", "to": "http://127.0.0.1:9/callback"}


async def submit(url: str, streams: int) -> None:
    """Submit until the input closes."""
    async with asyncio_loop(), open_store(RedisSettings(url=url, timeout=60)) as store:

        async def stream() -> None:
            while True:
                await fill.submit(store, fill.specs(store, count=ROWS, aggregations=100, **OTHER))  # type: ignore[arg-type]

        async with trio.open_nursery() as nursery:
            for _ in range(streams):
                nursery.start_soon(stream)
            print("ready", flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)
            nursery.cancel_scope.cancel()


async def renew(store: JobStore, leases: Sequence[Lease], seconds: float) -> list[float]:
    """The durations (s) of the renewals of all leases."""
    took = []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        settled = await store.renew(Kind.DOWNLOAD, "bench", leases, fill.LEASE_S)
        took.append(time.perf_counter() - began)
        assert set(settled) == {Settled.DONE}
        await trio.sleep(PAUSE_S)
    return took


async def measure(url: str, streams: int, apis: int, seconds: float) -> None:
    """Print a line for a store without other work, and one for a store with streams."""
    async with asyncio_loop(), open_store(RedisSettings(url=url, timeout=60)) as store:
        await fill.submit(store, fill.specs(store, count=LEASES, aggregations=1, **OTHER))  # type: ignore[arg-type]
        leases = (await store.lease(Kind.DOWNLOAD, "bench", LEASES, fill.LEASE_S)).leases
        assert len(leases) == LEASES
        for count in (0, streams):
            with ExitStack() as stack:
                for _ in range(apis if count else 0):
                    api = helper("renewals", "--submit", url, "--streams", count // apis)
                    await trio.to_thread.run_sync(stack.enter_context, api)
                hundredths = quantiles(await renew(store, leases, seconds), n=100, method="inclusive")
            p50, p99 = 1000 * hundredths[49], 1000 * hundredths[98]
            print(f"renewal of {LEASES} beside {count} streams: p50 {p50:.1f} ms, p99 {p99:.1f} ms")


def main() -> None:
    """Measure, or be an API."""
    parser = argparse.ArgumentParser(prog="python -m bench.renewals", description=__doc__)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--apis", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--submit", metavar="URL", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.submit:
        trio.run(submit, chosen.submit, chosen.streams)
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, helper("store", Path(folder)) as store:
        trio.run(measure, store.first, chosen.streams, chosen.apis, chosen.seconds)


if __name__ == "__main__":
    main()
