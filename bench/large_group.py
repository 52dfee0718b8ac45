"""What a job of a group costs the store when the group has few jobs, and when it has a million.

`python -m bench.large_group [--jobs 1000 100000 1000000]` fills one store after another, with jobs of no
group and of one, and prints for each what it takes for a job to be submitted and to end: commands (those in
scripts too) and CPU, and as a multiple of what a job of no group takes. It takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import redis
import trio

from bench import fill
from bench.processes import helper
from bench.store_load import settled, store_cpu_s
from downloader.config import RedisSettings
from downloader.model import Kind
from downloader.store import JobStore, asyncio_loop, open_store

SAMPLE = 5_000
"""Jobs that are submitted and ended while commands and CPU are counted; fewer in a smaller store."""

_BATCH = 64
"""Leased in one call, as by a processor, and completed in one."""

_KEEP_S = 3600.0

Measures = dict[str, float]


async def measure(url: str, jobs: int, group: str) -> Measures:
    """Fill an empty store with jobs of a group (`""`: of none), and end some of them."""
    sample = min(SAMPLE, jobs // 2)
    with redis.Redis.from_url(url) as database:
        async with asyncio_loop(), open_store(RedisSettings(url=url, timeout=60)) as store:
            empty = database.info("memory")["used_memory"]
            await _submit(store, jobs - sample, group)
            found = await _counted(database, "submit", sample, lambda: _submit(store, sample, group))
            found["bytes"] = (database.info("memory")["used_memory"] - empty) / jobs
            found |= await _counted(database, "end", sample, lambda: _end(store, sample))
            if group:
                shown = await store.group(group)
                assert shown is not None
                assert (shown.jobs, shown.unfinished) == (jobs, jobs - sample)
    return found


async def _submit(store: JobStore, count: int, group: str) -> None:
    specs = fill.specs(store, count=count, aggregations=1, limit=_BATCH, kind="", to="")
    await fill.submit(store, (replace(spec, group=group) for spec in specs))


async def _end(store: JobStore, count: int) -> None:
    while count:
        batch = await store.lease(Kind.DOWNLOAD, "bench", min(_BATCH, count), fill.LEASE_S)
        await store.settle("bench", [fill.stored(lease, None, _KEEP_S) for lease in batch.leases])
        count -= len(batch.leases)


async def _counted(
    database: redis.Redis, name: str, count: int, work: Callable[[], Awaitable[None]]
) -> Measures:
    """Commands and CPU of the store for each of `count` jobs."""
    settled(database)
    database.config_resetstat()
    before_s = store_cpu_s(database)
    await work()
    cpu_us = 1e6 * (store_cpu_s(database) - before_s) / count
    commands = sum(row["calls"] for row in database.info("commandstats").values())
    return {f"{name}, commands": commands / count, f"{name}, us": cpu_us}


def main() -> None:
    """Two lines for each size."""
    parser = argparse.ArgumentParser(prog="python -m bench.large_group", description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    for jobs in parser.parse_args().jobs:
        without: Measures = {}
        for group in ("", "night"):
            with (
                tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
                helper("store", Path(folder)) as store,
            ):
                found = trio.run(measure, store.first, jobs, group)
            without = without or found
            shown = [f"{name} {value:.1f} ({value / without[name]:.2f})" for name, value in found.items()]
            sys.stdout.write(f"{jobs:,} jobs of {'one' if group else 'no'} group: {'; '.join(shown)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
