"""F21 at full scale: what calls take with a million jobs of one aggregation and ten thousand of one job each.

`python -m bench.large_store [--jobs 1000000] [--aggregations 10000]` fills a store, starts an API on it, and
prints a line for each measure, beside the same with ten thousand jobs. It takes about a minute.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import quantiles

import redis
import trio

from bench import fill
from bench.processes import helper
from bench.service import Build, service
from downloader.config import RedisSettings
from downloader.model import Kind
from downloader.store import JobStore, asyncio_loop, open_store

SMALL = 10_000
CALLS = 200
DESTINATION = "http://127.0.0.1:8080/callback"
ROUTES = (
    "/jobs/{id}",
    "/jobs?aggr_id=bench-0&state=pending",
    "/aggregations",
    "/aggregations/bench-0",
    "/metrics",
)
LISTS = ("/dashboard/aggregations",)
"""Answers with a line for each aggregation."""

Measures = dict[str, str]


async def fill_up(store: JobStore, jobs: int, aggregations: int) -> str:
    """`jobs` in one aggregation, and one in each of `aggregations`; a job's id."""
    kind = {"limit": 1000, "kind": "http", "to": DESTINATION}
    large = fill.specs(store, count=jobs, aggregations=1, **kind)  # type: ignore[arg-type]
    small = (
        replace(spec, aggr_id=f"one-{number}", id=store.new_id(f"one-{number}"))
        for number, spec in enumerate(fill.specs(store, count=aggregations, aggregations=1, **kind))  # type: ignore[arg-type]
    )
    return (await fill.submit(store, chain(large, small)))[0]


async def transitions(store: JobStore) -> Measures:
    """What is called for every job, and what each instance calls by itself."""
    took: dict[str, list[float]] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        took.setdefault(name, []).append(time.perf_counter() - began)

    for _ in range(CALLS // 4):
        with timed("lease of 64"):
            leases = (await store.lease(Kind.DOWNLOAD, "bench", 64, fill.LEASE_S)).leases
        with timed("renewal of 64"):
            await store.renew(Kind.DOWNLOAD, "bench", leases, fill.LEASE_S)
        with timed("completion of 64"):
            await store.settle("bench", [fill.stored(lease, None, 3600.0) for lease in leases])
        with timed("sweep that finds nothing"):
            await store.sweep(Kind.DOWNLOAD)
    for _ in range(CALLS // 20):
        ended = (await store.lease(Kind.DOWNLOAD, "dead", 64, 0.001)).leases
        await trio.sleep(0.002)
        with timed("sweep of 64"):
            assert len(await store.sweep(Kind.DOWNLOAD)) == len(ended)
    return {name: told(seconds) for name, seconds in took.items()}


def requests(port: int, job_id: str) -> Measures:
    """What the API's routes take, one request after another."""
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def request(method: str, path: str, body: str | None = None) -> None:
        connection.request(method, path, body)
        answer = connection.getresponse()
        answer.read()
        assert answer.status < 300, (path, answer.status)

    def post() -> None:
        job = {"aggr_id": "bench-0", "aggr_limit": 1000, "url": "http://127.0.0.1/", "callback_type": "http"}
        request("POST", "/download", json.dumps({**job, "callback_dst": DESTINATION}))

    def timed(call: Callable[[], None], count: int) -> str:
        times = []
        for _ in range(count):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
        return told(times)

    found = {"POST /download": timed(post, CALLS)}
    for count, routes in ((CALLS, ROUTES), (CALLS // 20, LISTS)):
        for route in routes:
            path = route.format(id=job_id)
            found[f"GET {route}"] = timed(lambda path=path: request("GET", path), count)  # type: ignore[misc]
    return found


def told(seconds: list[float]) -> str:
    """Median and 99th percentile."""
    hundredths = quantiles(seconds, n=100, method="inclusive")
    return f"{1000 * hundredths[49]:.1f} ms, p99 {1000 * hundredths[98]:.1f}"


def peak_kib(pid: int) -> int:
    """Memory of a process at the most, so far."""
    lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


async def measure(url: str, folder: Path, jobs: int, aggregations: int) -> Measures:
    """Fill an empty store, and all measures."""
    with redis.Redis.from_url(url) as database:
        empty = database.info("memory")["used_memory"]
        async with asyncio_loop(), open_store(RedisSettings(url=url, timeout=60)) as store:
            began = time.perf_counter()
            job_id = await fill_up(store, jobs, aggregations)
            found = {
                "filled by one client in": f"{time.perf_counter() - began:.0f} s",
                "store's memory per job": (
                    f"{(database.info('memory')['used_memory'] - empty) / (jobs + aggregations):.0f} bytes"
                ),
            }
            found |= await transitions(store)
            began = time.perf_counter()
            with service(folder, Build("now", sys.executable), role="api", store=url) as api:
                found["start of an API"] = f"{time.perf_counter() - began:.1f} s"
                found |= await trio.to_thread.run_sync(requests, api.port, job_id)
                found["API's memory at the most"] = f"{peak_kib(api.pid) / 1024:.0f} MiB"
            return found


def main() -> None:
    """Both stores, side by side."""
    parser = argparse.ArgumentParser(prog="python -m bench.large_store", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--aggregations", type=int, default=10_000)
    chosen = parser.parse_args()
    columns: list[Measures] = []
    for jobs, aggregations in ((chosen.jobs, chosen.aggregations), (SMALL, 10)):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, helper("store", Path(folder)) as store:
            columns.append(trio.run(measure, store.first, Path(folder) / "api", jobs, aggregations))
    large, small = columns
    sys.stdout.write(
        f"| | {SMALL:,} jobs | {chosen.jobs:,} and {chosen.aggregations:,} of one |\n|---|---|---|\n"
    )
    for name, value in large.items():
        sys.stdout.write(f"| {name} | {small[name]} | {value} |\n")


if __name__ == "__main__":
    main()
