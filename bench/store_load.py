"""Lease and complete jobs straight in a store that holds many (S4).

`python -m bench.store_load URL PENDING AGGREGATIONS COUNT` submits PENDING jobs, leases and completes COUNT
of them, and prints one JSON object: `cpu_s` of this process and `store_cpu_s`, for the COUNT.
"""

from __future__ import annotations

import json
import sys
import time

import redis
import trio

from bench import fill
from downloader.config import RedisSettings
from downloader.model import Kind
from downloader.store import JobStore, asyncio_loop, open_store

_BATCH = 64
"""Leased in one call, as by a processor, and completed in one."""

_KEEP_S = 3600.0
_LOOK_S = 0.1


async def run(url: str, pending: int, aggregations: int, count: int) -> None:
    done, cpu_s, store_s = 0, 0.0, 0.0
    share = min(pending, count)
    destination = "http://127.0.0.1:9/callback"
    with redis.Redis.from_url(url) as database:
        async with asyncio_loop(), open_store(RedisSettings(url=url)) as store:
            more = pending
            while done < count:
                jobs = fill.specs(
                    store, count=more, aggregations=aggregations, limit=_BATCH, kind="http", to=destination
                )
                await fill.submit(store, jobs)
                settled(database)
                before, store_before = time.process_time(), store_cpu_s(database)
                done += await _drain(store, share)
                cpu_s += time.process_time() - before
                store_s += store_cpu_s(database) - store_before
                more = share  # as many as there were again, so that a small store is measured as long
    print(json.dumps({"cpu_s": cpu_s / done * count, "store_cpu_s": store_s / done * count}))


async def _drain(store: JobStore, count: int) -> int:
    done = 0
    while done < count:
        batch = await store.lease(Kind.DOWNLOAD, "bench", min(_BATCH, count - done), fill.LEASE_S)
        await store.settle("bench", [fill.stored(lease, None, _KEEP_S) for lease in batch.leases])
        done += len(batch.leases)
    return done


def settled(database: redis.Redis) -> None:
    """Wait until the append-only file is not being rewritten, which makes the server copy what it changes."""
    while database.info("persistence")["aof_rewrite_in_progress"]:
        time.sleep(_LOOK_S)


def store_cpu_s(database: redis.Redis) -> float:
    """CPU of the store's main thread, in microseconds where /proc counts hundredths of a second."""
    cpu = database.info("cpu")
    return float(cpu["used_cpu_sys_main_thread"]) + float(cpu["used_cpu_user_main_thread"])


def main() -> None:
    url, pending, aggregations, count = sys.argv[1:5]
    trio.run(run, url, int(pending), int(aggregations), int(count))


if __name__ == "__main__":
    main()
