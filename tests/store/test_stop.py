"""What a stop does to work that is due when it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio

from downloader.model import FileFacts, Kind, Lease, Outcome, Verdict
from downloader.scheduler import Stop, Wake, Workload, download_settler, run_workload
from downloader.scheduler.settle import End
from downloader.store import Submission
from downloader.store.redis_store import RedisStore
from servers.jobs import spec_for


@pytest.mark.parametrize("looks_once_more", [True, False])
async def test_what_is_due_at_a_stop_is_taken_along_if_so_wanted(
    store: RedisStore, *, looks_once_more: bool
) -> None:
    """So the callbacks of a process's last downloads do not wait for its next start."""
    spec = spec_for(store)
    await store.submit([Submission(spec=spec)])
    done: list[str] = []

    async def work(lease: Lease, _: Callable[[], bool]) -> End:
        done.append(lease.id)
        return Outcome(verdict=Verdict.SUCCEEDED, response_code=200, file=FileFacts(size=1))

    workload = Workload(
        kind=Kind.DOWNLOAD,
        concurrency=4,
        lease_s=30,
        work=work,
        settle=download_settler(store, "a", per_destination=4, keep_s=60),
    )
    stop = Stop()
    stop.begin(5.0)
    with trio.fail_after(10):
        await run_workload(
            store,
            replace(workload, looks_once_more=looks_once_more),
            owner="a",
            wake=Wake(),
            stop=stop,
        )
    assert done == ([spec.id] if looks_once_more else [])
