"""How fast a process starts downloads, for the pace after a cooldown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import trio
import trio.testing

from downloader.ids import new_id
from downloader.model import Cooldown, JobSpec, Kind, Lease, Outcome, StartRate, Verdict
from downloader.service.start_rates import FORGET_AT, Starts

DONE = Outcome(verdict=Verdict.SUCCEEDED, response_code=200)
REFUSED = Outcome(
    verdict=Verdict.THROTTLED,
    error="429",
    response_code=429,
    cooldown=Cooldown(seconds=30, asked=False),
)


def lease(queue: str = "a", host: str = "") -> Lease:
    spec = JobSpec(id=new_id(0, 1), aggr_id=queue, aggr_limit=1, url="http://x/", host=host)
    return Lease(kind=Kind.DOWNLOAD, spec=spec, queue=queue, generation=1, attempts=0, crashes=0, limit=9)


def ends_with(outcome: Outcome) -> Callable[[], Awaitable[Outcome]]:
    async def attempt() -> Outcome:
        await trio.lowlevel.checkpoint()
        return outcome

    return attempt


async def had(starts: Starts, job: Lease) -> tuple[StartRate | None, StartRate | None]:
    outcome = await starts.counted(job, ends_with(REFUSED))
    assert outcome.cooldown is not None
    assert replace(outcome, cooldown=REFUSED.cooldown) == REFUSED
    return outcome.cooldown.had, outcome.cooldown.host_had


async def test_starts_of_the_last_minute_count(autojump_clock: trio.testing.MockClock) -> None:
    starts = Starts()
    assert await had(starts, lease()) == (StartRate(0, 1), None), "nothing was accepted"
    for _ in range(7):
        await starts.counted(lease(), ends_with(DONE))
    assert await had(starts, lease()) == (StartRate(4.5, 1), None), "in two seconds at least"
    await trio.sleep(100)
    for _ in range(1200):
        await starts.counted(lease(), ends_with(DONE))
        await trio.sleep(0.1)
    rate, _ = await had(starts, lease())
    assert rate is not None
    assert 9.5 < rate.per_s < 10.5
    for _ in range(900):
        await starts.counted(lease(), ends_with(DONE))
        await trio.sleep(0.2)
    rate, _ = await had(starts, lease())
    assert rate is not None
    assert 4.5 < rate.per_s < 6


async def test_what_is_being_received_was_accepted() -> None:
    received = dict[str, int]()
    starts = Starts(received)
    job = lease()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(starts.counted, job, trio.sleep_forever)
        await trio.testing.wait_all_tasks_blocked()
        assert await had(starts, lease()) == (StartRate(0, 2), None)
        received[job.id] = 1
        assert await had(starts, lease()) == (StartRate(1.5, 2), None)
        assert await had(starts, lease("b")) == (StartRate(0, 1), None)
        nursery.cancel_scope.cancel()


async def test_a_host_counts_all_aggregations(autojump_clock: trio.testing.MockClock) -> None:
    starts = Starts()
    async with trio.open_nursery() as nursery:
        for queue in ("a", "b", "b"):
            nursery.start_soon(starts.counted, lease(queue, "x"), ends_with(DONE))
            nursery.start_soon(starts.counted, lease(queue, "x"), trio.sleep_forever)
        await trio.testing.wait_all_tasks_blocked()
        assert await had(starts, lease("a", "x")) == (StartRate(1.5, 2), StartRate(3.5, 4))
        nursery.cancel_scope.cancel()
    assert await had(starts, lease("a", "x")) == (StartRate(2.0, 1), StartRate(4.0, 1))


async def test_names_without_a_recent_start_are_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    starts = Starts()
    for number in range(3 * FORGET_AT):
        await starts.counted(lease(f"{number}"), ends_with(DONE))
        await trio.sleep(1)
    assert len(starts._counts) <= FORGET_AT
