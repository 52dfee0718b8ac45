"""Many idle processors on one store: what a job costs that all of them could do (S12).

`python -m bench.idle_fleet URL PROCESSORS JOBS PER_S RATE CLUSTER` prints one JSON object: lease calls a
job, and the longest time until a job began. RATE is
that of the jobs' one aggregation; 0: none, and each job has an aggregation of its own. CLUSTER: 1 or 0.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial

import trio

from downloader.config import RedisSettings
from downloader.model import JobSpec, Kind, Lease, Outcome, Verdict
from downloader.scheduler import Stop, Wake, Work, run_work
from downloader.store import Settlement, Submission, asyncio_loop, open_store

SETTLE_S = 2.0
LEASE_S = 30.0
DONE = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
Begin = Callable[[str], None]


async def process(
    settings: RedisSettings,
    name: str,
    calls: Counter[str],
    begin: Begin,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a processor whose downloads take no time."""

    async def work(lease: Lease, _: object) -> Settlement:
        begin(lease.id)
        return Settlement.of(lease, DONE, callback=None, keep_s=60)

    def timed(call: str, _: float) -> None:
        calls[call] += 1

    wake = Wake()
    described = Work(
        kind=Kind.DOWNLOAD,
        concurrency=256,
        lease_s=LEASE_S,
        longest_s=lambda _: LEASE_S,
        work=work,
        on_end=lambda *_: None,
    )
    async with open_store(settings, timed) as store, trio.open_nursery() as nursery:
        await nursery.start(partial(store.listen, owner=name), {Kind.DOWNLOAD: wake.set})
        await nursery.start(partial(run_work, store, described, owner=name, wake=wake, stop=Stop()))
        task_status.started()


async def run(settings: RedisSettings, processors: int, jobs: int, per_s: float, rate: float) -> None:
    calls: Counter[str] = Counter()
    sent: dict[str, float] = {}
    waited: list[float] = []

    def begin(job_id: str) -> None:
        waited.append(trio.current_time() - sent[job_id])

    async with asyncio_loop(), open_store(settings) as store, trio.open_nursery() as nursery:
        for number in range(processors):
            await nursery.start(process, settings, f"bench {number}", calls, begin)
        await trio.sleep(SETTLE_S)
        calls.clear()
        began = trio.current_time()
        for number in range(jobs):
            group = "paced" if rate else f"g{number}"
            spec = JobSpec(
                id=store.new_id(group),
                aggr_id=group,
                aggr_limit=256,
                aggr_rate=rate or None,
                url="http://127.0.0.1:9/",
            )
            sent[spec.id] = trio.current_time()
            await store.submit([Submission(spec=spec)])
            await trio.sleep_until(began + (number + 1) / per_s)
        await trio.sleep(SETTLE_S)
        nursery.cancel_scope.cancel()
    measures = {
        "processors": processors,
        "begun": len(waited),
        "lease_calls_per_job": calls["lease"] / jobs,
        "longest_wait_ms": 1000 * max(waited, default=0),
    }
    print(json.dumps(measures))


if __name__ == "__main__":
    url, count, jobs, per_s, rate, cluster = sys.argv[1:]
    trio.run(
        run, RedisSettings(url=url, cluster=cluster == "1"), int(count), int(jobs), float(per_s), float(rate)
    )
